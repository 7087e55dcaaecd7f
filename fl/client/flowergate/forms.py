"""Which record is called what: in what Flower's apps are asked, and in what they answer.

    message   {"arrays", "config"} asks, and one record of arrays and one of metrics with "num-examples" answer
    legacy    {"fitins.parameters", "fitins.config"} asks a NumPyClient or Client, and "fitres.parameters",
              "fitres.num_examples", "fitres.metrics", "fitres.status" answer; the same with "evaluateins" and
              "evaluateres". Its arrays are a list, named "0", "1", …: the model's tensors, in the job's order

A round's number is "server-round" in a message's config, beside what the job's creator set. Older clients were told it
by functions of their own strategies, under one of three names: they get all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from fl.client.errors import QuorateError
from fl.client.flowergate.parcels import ArraysRecord, MetricsRecord, Record, Setting, SettingsRecord

TRAIN, EVALUATE = "train", "evaluate"

_ROUND_NAMES = ("server-round", "server_round", "current_round")
_EXAMPLES = "num-examples"
_OLD_EXAMPLES = "num_examples"
_OLD_NAMES = {TRAIN: ("fitins", "fitres"), EVALUATE: ("evaluateins", "evaluateres")}


class Records(StrEnum):
    MESSAGE = "message"
    LEGACY = "legacy"


class WrongReply(QuorateError):
    """The app's answer cannot be used."""

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__("WRONG_REPLY", what, todo)


@dataclass(frozen=True, slots=True)
class Question:
    """A task or an evaluation, as Flower sees it."""

    kind: str
    round: int
    model: Mapping[str, NDArray[Any]]
    config: Mapping[str, Setting]

    def __str__(self) -> str:
        return f"round {self.round}" if self.kind == TRAIN else f"the evaluation of round {self.round}"


@dataclass(frozen=True, slots=True)
class Answer:
    arrays: Mapping[str, NDArray[Any]]
    examples: int
    metrics: Mapping[str, float]


def asked(question: Question, form: Records) -> dict[str, Record]:
    if form == Records.MESSAGE:
        config = {**question.config, _ROUND_NAMES[0]: question.round}
        return {"arrays": ArraysRecord(question.model), "config": SettingsRecord(config)}
    asks, _ = _OLD_NAMES[question.kind]
    listed = {str(place): array for place, array in enumerate(question.model.values())}
    return {
        f"{asks}.parameters": ArraysRecord(listed, is_described=False),
        f"{asks}.config": SettingsRecord({**question.config, **dict.fromkeys(_ROUND_NAMES, question.round)}),
    }


def answered(question: Question, form: Records, records: Mapping[str, Record]) -> Answer:
    """Raises WrongReply."""
    if form == Records.MESSAGE:
        return _message_answer(question, records)
    return _old_answer(question, records)


def _message_answer(question: Question, records: Mapping[str, Record]) -> Answer:
    metrics = _only(records, MetricsRecord, "metrics").values
    arrays = _only(records, ArraysRecord, "arrays").arrays if question.kind == TRAIN else {}
    if unknown := arrays.keys() - question.model.keys():
        raise WrongReply(f"the app gave the array {min(unknown)[:200]!r}, and the model has none of this name.")
    numbers = {name: value for name, value in metrics.items() if name != _EXAMPLES}
    return Answer(arrays, _count(metrics, _EXAMPLES), _numbers(numbers))


def _only(records: Mapping[str, Record], kind: type[Any], what: str) -> Any:
    found = [each for each in records.values() if isinstance(each, kind)]
    if len(found) != 1:
        raise WrongReply(f"the app's reply has {len(found)} records of {what}, not one.", _OTHER_FORM)
    return found[0]


_OTHER_FORM = "See --records."


def _old_answer(question: Question, records: Mapping[str, Record]) -> Answer:
    _, name = _OLD_NAMES[question.kind]
    status = _of(records, f"{name}.status", SettingsRecord).values
    if status.get("code") != 0:
        raise WrongReply(f"the client's status is {status.get('code')}: {str(status.get('message', ''))[:200]!r}.")
    examples = _count(_of(records, f"{name}.{_OLD_EXAMPLES}", MetricsRecord).values, _OLD_EXAMPLES)
    metrics = _numbers(_of(records, f"{name}.metrics", SettingsRecord).values)
    if question.kind == EVALUATE:
        return Answer({}, examples, metrics | _numbers(_of(records, f"{name}.loss", MetricsRecord).values))
    return Answer(_named(question.model, _of(records, f"{name}.parameters", ArraysRecord).arrays), examples, metrics)


def _of(records: Mapping[str, Record], name: str, kind: type[Any]) -> Any:
    found = records.get(name)
    if not isinstance(found, kind):
        raise WrongReply(f"the app's reply has no {name}.", _OTHER_FORM)
    return found


def _named(model: Mapping[str, Any], listed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    places = [str(place) for place in range(len(model))]
    if set(listed) != set(places):
        raise WrongReply(f"the client gave {len(listed)} arrays, and the model has {len(places)}.")
    return {name: listed[place] for name, place in zip(model, places, strict=True)}


def _count(metrics: Mapping[str, Any], name: str) -> int:
    given = metrics.get(name)
    if isinstance(given, bool) or not isinstance(given, int | float) or given != given // 1 or given < 0:
        raise WrongReply(f"the app's reply has no number of examples as {name}.", "Return it with the metrics.")
    return int(given)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
