"""A round as a message of Flower's, and an app's reply as arrays, examples and metrics.

There are two dialects. Apps with `@app.train()` get their arrays by name:

    in    arrays: ArrayRecord, config: ConfigRecord with server-round
    out   one ArrayRecord and one MetricRecord with num-examples

Apps made of a client (NumPyClient, client_fn) get a list, in the order of the job's schema:

    in    fitins.parameters, fitins.config              evaluateins.parameters, evaluateins.config
    out   fitres.parameters, .num_examples, .metrics,   evaluateres.loss, .num_examples, .metrics, .status
          .status
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadInput, QuorateError
from fl.client.jobdraft import ConfigValue

Named = dict[str, NDArray[Any]]

ARRAYS, CONFIG, EXAMPLES = "arrays", "config", "num-examples"
TRAIN, EVALUATE, GET_PARAMETERS = "train", "evaluate", "get_parameters"
SERVER_ROUND = "server-round"
ROUND_NAMES = (SERVER_ROUND, "server_round", "current_round")
"""Clients of the list's dialect are told the round by their strategy's own config function, under one of these."""

SUPERLINK = 1
"""The node that messages come from."""
_LIFE_S = 366 * 86_400.0
"""A message outlives the longest round."""
_KINDS = "biuf"


@dataclass(frozen=True, slots=True)
class Trained:
    arrays: Named
    examples: int
    metrics: dict[str, float]


def takes_lists(client_app: Any) -> bool:
    """Whether the app is made of a client, and not of functions by the kind of message."""
    return getattr(client_app, "_call", None) is not None


def message(kind: str, content: Any, round: int, run: int, node: int) -> Any:
    from flwr.app import Message, Metadata

    metadata = Metadata(
        run_id=run,
        message_id=f"{kind}-{round}",
        src_node_id=SUPERLINK,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=str(round),
        created_at=time.time(),
        ttl=_LIFE_S,
        message_type=kind,
    )
    return Message(metadata=metadata, content=content)


def asking(kind: str, lists: bool, arrays: Named, config: Mapping[str, ConfigValue], round: int) -> Any:
    """What an app is given in a round."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    told = {**config, **dict.fromkeys(ROUND_NAMES if lists else ROUND_NAMES[:1], round)}
    values = {name: Array(np.asarray(array, order="C")) for name, array in arrays.items()}
    if lists:
        prefix = "fitins" if kind == TRAIN else "evaluateins"
        by_number = {str(place): each for place, each in enumerate(values.values())}
        return RecordDict(
            {f"{prefix}.parameters": ArrayRecord(by_number), f"{prefix}.config": ConfigRecord(told)},
        )
    return RecordDict({ARRAYS: ArrayRecord(values), CONFIG: ConfigRecord(told)})


def asking_for_parameters() -> Any:
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({"getparametersins.config": ConfigRecord()})


def content_of(reply: Any, app: str) -> Any:
    """The records of a reply that says that all went well."""
    from flwr.app import Message

    if not isinstance(reply, Message):
        raise BadInput(
            "BAD_APP",
            f"The app {app} has returned {_kind(reply)}, and no Message.",
            "End with: return Message(content=…, reply_to=message)",
        )
    if reply.has_error():
        raise QuorateError("APP_FAILED", f"The app {app} answers with an error: {reply.error.reason}", "Mend it.")
    for name, record in reply.content.config_records.items():
        if name.endswith(".status") and int(record["code"]) != 0:
            raise QuorateError(
                "APP_FAILED",
                f"The client {app} answers with the status {record['code']}: {record['message']}",
                "Make it answer with status OK, or mend what it complains of.",
            )
    return reply.content


def trained(content: Any, lists: bool, names: Sequence[str], app: str) -> Trained:
    if lists:
        parameters = listed(content["fitres.parameters"], app)
        if len(parameters) != len(names):
            raise BadInput(
                "BAD_APP",
                f"The client {app} has returned a list of {len(parameters)}, and the model has {len(names)} arrays.",
                "Return as many as fit() was given, in the same order.",
            )
        examples = content["fitres.num_examples"]["num_examples"]
        return Trained(
            dict(zip(names, parameters, strict=True)),
            _count(examples, app),
            _numbers(content["fitres.metrics"]),
        )
    if len(content.array_records) != 1:
        raise BadInput(
            "BAD_APP",
            f"The app {app} has returned {len(content.array_records)} ArrayRecords from training.",
            "Return one, with the arrays that it was given.",
        )
    (record,) = content.array_records.values()
    arrays = {name: _array(name, each, app) for name, each in record.items()}
    if unknown := arrays.keys() - set(names):
        raise BadInput(
            "BAD_APP",
            f"The app {app} has returned {', '.join(sorted(unknown))}, which the job's model has not.",
            "Return the arrays that it was given, under their names.",
        )
    return Trained(arrays, *_measured_by_name(content, app))


def measured(content: Any, lists: bool, app: str) -> tuple[int, dict[str, float]]:
    if not lists:
        return _measured_by_name(content, app)
    loss, examples = content["evaluateres.loss"]["loss"], content["evaluateres.num_examples"]["num_examples"]
    return _count(examples, app), {"loss": float(loss), **_numbers(content["evaluateres.metrics"])}


def listed(record: Any, app: str) -> list[NDArray[Any]]:
    """Of parameters that a client has returned; a key for none stands in an empty list."""
    return [_array(key, each, app) for key, each in record.items() if each.data]


def _measured_by_name(content: Any, app: str) -> tuple[int, dict[str, float]]:
    if len(content.metric_records) != 1:
        raise BadInput(
            "BAD_APP",
            f"The app {app} has returned {len(content.metric_records)} MetricRecords.",
            f'Return one, with "{EXAMPLES}" and the metrics.',
        )
    (record,) = content.metric_records.values()
    if EXAMPLES not in record:
        raise BadInput(
            "BAD_APP",
            f'The app {app} has returned no "{EXAMPLES}".',
            f'Say in the MetricRecord how many there were: MetricRecord({{"{EXAMPLES}": n, …}}).',
        )
    metrics = _numbers(record)
    del metrics[EXAMPLES]
    return _count(record[EXAMPLES], app), metrics


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics are numbers: text, bytes and lists that are among them stay here."""
    return {name: float(value) for name, value in record.items() if isinstance(value, int | float)}


def _count(examples: Any, app: str) -> int:
    if isinstance(examples, float) and examples.is_integer():
        examples = int(examples)
    if isinstance(examples, bool) or not isinstance(examples, int):
        raise BadInput("BAD_APP", f"The app {app} counts {examples!r} examples.", "Return a whole number of them.")
    return examples


def _array(name: str, array: Any, app: str) -> NDArray[Any]:
    found: NDArray[Any] = array.numpy()
    if found.dtype.kind not in _KINDS:
        raise BadInput(
            "BAD_APP", f"The array {name} of the app {app} is of the type {found.dtype}.", "Return real numbers."
        )
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
