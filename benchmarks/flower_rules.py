"""Every rule beside Flower's strategy of the same name: how far apart they are, and how far they may be.

    pip install "flwr==1.41.*"        beside Quorate with its extra `node`; Flower is needed here and nowhere else
    python -m benchmarks.flower_rules [--trainers 23] [--parameters 100000] [--rounds 3] [--seeds 3] [--out flower.json]

Both get the same model and the same trained weights, round by round: Flower the weights as float32 arrays, Quorate
their changes in the encoding f32, through the aggregation that validators run. Optimisers keep their own moments.
Bounds are those of benchmarks.flower_bounds; docs/flower-differences.md says where the formulas differ, and so which
inputs and settings are compared here. The model that Flower returns is compared in whatever dtype it has.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accounts import ruled, rules_of
from benchmarks.flower_bounds import (
    Change,
    Inputs,
    Moments,
    Values,
    adaptive_error,
    averaged_error,
    change_of,
    gamma,
    mean_error,
    model_error,
    momentum_error,
    square_error,
    yogi_error,
)
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.jobrules import grid_of
from fl.records import JobRules
from fl.rules import rule_of
from fl.rules.rule import Settings, settings_of
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import array_at
from fl.tensors.model import build_model, parse_model
from fl.tensors.moments import moment_form
from fl.updates import form_of

try:
    from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
    from flwr.serverapp import strategy as flower
    from flwr.serverapp.strategy.multikrum import select_multikrum
except ImportError:
    raise SystemExit('This compares with Flower, which is not installed: pip install "flwr==1.41.*"') from None

JOB, LOG_ROOT = bytes(32), bytes(32)
F32 = NDArray[np.float32]
BASE_SCALE, CHANGE_SCALE = 0.1, 0.01
MEAN, SQUARE = "m", "v"
RATE, MOMENTUM, BETA_1, BETA_2, TAU = "learning_rate", "momentum", "beta_1", "beta_2", "tau"
CUT_PERCENT = 20


class Job:
    """Quorate's side: a model and its moments, from round to round."""

    def __init__(self, rules: JobRules, base: F32) -> None:
        self.rules = rules
        self.rule = rule_of(rules.rule)
        self.settings = settings_of(self.rule, rules.settings)
        self.step = 1
        self._model = build_model(rules.schema, {"w": base})
        self._moments: bytes | None = None

    @property
    def model(self) -> F32:
        return parse_model(self.rules.schema, self._model)["w"].copy()

    @property
    def moments(self) -> Moments:
        """Zeros for what the rule does not keep, and before the first round."""
        found = {name: np.zeros(self.model.size) for name in (MEAN, SQUARE)}
        for name in self.rule.moments if self._moments is not None else ():
            (run,) = moment_form(self.rules.schema, self.rules.schema, self.rule.moments, name).runs
            stored = array_at(self._moments or b"", "F32", run.stop - run.start, run.offset)
            found[name] = stored.view(np.float32).astype(np.float64)
        return Moments(found[MEAN], found[SQUARE])

    def close(self, deltas: F32, examples: Sequence[int]) -> None:
        form = form_of(self.rules, 0)
        aggregation = Aggregation(AggregationRules(JOB, self.step, self.rules, self.step))
        for index, (delta, weight) in enumerate(zip(deltas, examples, strict=True)):
            place = Place(JOB, self.step, index.to_bytes(32, "big"))
            payload = encode_update(form, place, {"w": delta})
            print_ = payload_fingerprint(payload, len(form.header(place)))
            aggregation.add(Update(index, self.step, place.member, weight, 0, payload, print_))
        closing = aggregation.finish(LOG_ROOT, self._model, self._moments)
        chunks = closing.moments()
        self._moments = None if chunks is None else b"".join(chunks)
        self._model = b"".join(closing.model(self._moments))
        self.step += 1


def reply(node: int, trained: F32, examples: int) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="reply",
        src_node_id=node,
        dst_node_id=1,
        reply_to_message_id="request",
        group_id="",
        created_at=1.0,
        ttl=1.0,
        message_type="train",
    )
    content = RecordDict(
        {"arrays": ArrayRecord({"w": Array(trained)}), "metrics": MetricRecord({"num-examples": int(examples)})}
    )
    return Message(metadata=metadata, content=content)


def flower_round(
    strategy: flower.Strategy, number: int, base: F32, trained: F32, examples: Sequence[int]
) -> NDArray[Any]:
    """The model that Flower's strategy makes, as `configure_train` and `aggregate_train` would in a run."""
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = ArrayRecord({"w": Array(base)})
    elif hasattr(strategy, "current_arrays"):
        strategy.current_arrays = {"w": base}
    replies = [reply(2 + i, *each) for i, each in enumerate(zip(trained, examples, strict=True))]
    arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    found: NDArray[Any] = arrays["w"].numpy()
    return found


# Which updates, and which values, count


def squared_distances(updates: NDArray[Any]) -> Values:
    exact = updates.astype(np.float64)
    return np.array([[np.sum((one - other) ** 2) for other in exact] for one in exact])


def best(distances: Values, bad: int, wanted: int) -> list[int]:
    """By Krum's score, among all of them."""
    closest = max(1, len(distances) - bad - 2)
    scores = [np.sort(np.delete(row, place))[:closest].sum() for place, row in enumerate(distances)]
    return [int(each) for each in np.argsort(scores, kind="stable")[:wanted]]


def selected(distances: Values, bad: int) -> list[int]:
    """Bulyan's: Krum's choice again and again, of those that are left."""
    left, chosen = list(range(len(distances))), list[int]()
    while len(chosen) < len(distances) - 2 * bad:
        place = best(distances[np.ix_(left, left)], bad, 1)[0]
        chosen.append(left.pop(place))
    return sorted(chosen)


def flower_choice(trained: F32, bad: int, wanted: int) -> set[int]:
    contents = [reply(2 + i, each, 1).content for i, each in enumerate(trained)]
    chosen = select_multikrum(contents, bad, wanted)
    return {place for place, each in enumerate(contents) if any(each is one for one in chosen)}


def nearest_to_median(updates: Values, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Of each value the updates that are nearest to its median, and where float32 may see others there."""
    distance = np.abs(updates - np.median(updates, axis=0))
    order = np.argsort(distance, axis=0, kind="stable")
    sorted_distance = np.take_along_axis(distance, order, axis=0)
    gap = sorted_distance[wanted] - sorted_distance[wanted - 1]
    return order[:wanted], gap <= gamma(4) * np.abs(updates).max(axis=0)


# Bounds of one round


@dataclass(slots=True)
class Round:
    """What both were given, and what Quorate made of it."""

    number: int
    inputs: Inputs
    settings: Settings
    old: Moments
    new: Moments
    model: F32
    error: Moments
    """Of the moments before; the bound of an optimiser puts that of the new ones here."""
    sure: NDArray[np.bool_]
    """Where both take the same values, for a rule that chooses: a bound puts that here."""


def of_rows(inputs: Inputs, rows: NDArray[np.intp] | Sequence[int], deltas: F32, trained: F32) -> Inputs:
    """The same round with the chosen updates alone, each value's own or the same for all, and equal shares."""
    index = np.asarray(rows)
    if index.ndim == 1:
        trained, deltas = trained[index], deltas[index]
    else:
        trained, deltas = (np.take_along_axis(each, index, axis=0) for each in (trained, deltas))
    return Inputs(inputs.base, trained, deltas, np.full(len(index), 1 / len(index)), inputs.steps)


def of_mean(found: Round) -> Values:
    return mean_error(found.inputs)


def of_ranks(first: int, last: int) -> Callable[[Round], Values]:
    def bound(found: Round) -> Values:
        # A change is the rounded difference of a weight and the model, so it has the rank of the weight.
        rows = np.argsort(found.inputs.trained, axis=0, kind="stable")[first:last]
        return mean_error(of_rows(found.inputs, rows, found.inputs.deltas, found.inputs.trained))

    return bound


def of_best(bad: int, wanted: int) -> Callable[[Round], Values]:
    def bound(found: Round) -> Values:
        rows = best(squared_distances(found.inputs.deltas), bad, wanted)
        found.sure &= flower_choice(found.inputs.trained, bad, wanted) == set(rows)
        return mean_error(of_rows(found.inputs, rows, found.inputs.deltas, found.inputs.trained))

    return bound


def of_bulyan(bad: int) -> Callable[[Round], Values]:
    def bound(found: Round) -> Values:
        rows = selected(squared_distances(found.inputs.deltas), bad)
        deltas, trained = found.inputs.deltas[rows], found.inputs.trained[rows]
        nearest, unsure = nearest_to_median(trained.astype(np.float64), len(rows) - 2 * bad)
        found.sure = ~unsure & (flower_choice(found.inputs.trained, bad, len(rows)) == set(rows))
        return mean_error(of_rows(found.inputs, nearest, deltas, trained))

    return bound


def of_momentum(found: Round) -> Values:
    rate, keep = (float(found.settings[name]) for name in (RATE, MOMENTUM))
    error = averaged_error(found.error.mean, found.old.mean, change_of(found.inputs), keep, 1.0)
    found.error = Moments(error, found.error.square)
    return momentum_error(error, found.new.mean, rate)


def of_adaptive(
    square: Callable[[Round, Change], Values], rate: Callable[[Round], float] | None = None
) -> Callable[[Round], Values]:
    def bound(found: Round) -> Values:
        change = change_of(found.inputs)
        keep = float(found.settings[BETA_1])
        mean = averaged_error(found.error.mean, found.old.mean, change, keep, 1 - keep)
        found.error = Moments(mean, square(found, change))
        eta = rate(found) if rate else float(found.settings[RATE])
        return adaptive_error(found.error, found.new, eta, float(found.settings[TAU]))

    return bound


def adagrad_square(found: Round, change: Change) -> Values:
    return square_error(found.error.square, found.old.square, change, 1.0, 1.0)


def adam_square(found: Round, change: Change) -> Values:
    keep = float(found.settings[BETA_2])
    return square_error(found.error.square, found.old.square, change, keep, 1 - keep)


def yogi_square(found: Round, change: Change) -> Values:
    return yogi_error(found.error.square, found.old.square, change, 1 - float(found.settings[BETA_2]))


def adam_rate(found: Round) -> float:
    one, two = (1 - float(found.settings[name]) ** found.number for name in (BETA_1, BETA_2))
    return float(found.settings[RATE]) * float(np.sqrt(two)) / one


# What is compared


@dataclass(frozen=True, slots=True)
class Case:
    rule: str
    settings: Mapping[str, int | float]
    strategy: Callable[[], flower.Strategy]
    bound: Callable[[Round], Values]
    weighted: bool = False
    note: str = ""


def cases(trainers: int, bad: int, best_of: int) -> list[Case]:
    cut = trainers * CUT_PERCENT // 100
    middle = (trainers - 1) // 2, trainers // 2 + 1
    rate, keep, tau, beta_1, beta_2 = 0.1, 0.9, 1e-3, 0.9, 0.99
    adam = {RATE: rate, BETA_1: beta_1, BETA_2: beta_2, TAU: tau}
    return [
        Case("fedavg", {}, flower.FedAvg, of_mean, weighted=True),
        Case(
            "fedavgm",
            {RATE: rate, MOMENTUM: keep},
            lambda: flower.FedAvgM(server_learning_rate=rate, server_momentum=keep),
            of_momentum,
            weighted=True,
        ),
        Case(
            "fedadagrad",
            {RATE: rate, TAU: tau},
            lambda: flower.FedAdagrad(eta=rate, tau=tau),
            of_adaptive(adagrad_square),
            weighted=True,
        ),
        Case(
            "fedadam",
            adam,
            lambda: flower.FedAdam(eta=rate, beta_1=beta_1, beta_2=beta_2, tau=tau),
            of_adaptive(adam_square, adam_rate),
            weighted=True,
        ),
        Case(
            "fedyogi",
            adam,
            lambda: flower.FedYogi(eta=rate, beta_1=beta_1, beta_2=beta_2, tau=tau),
            of_adaptive(yogi_square),
            weighted=True,
        ),
        Case("median", {}, flower.FedMedian, of_ranks(*middle)),
        Case(
            "trimmed_mean",
            {"share": CUT_PERCENT, "of": 100},
            lambda: flower.FedTrimmedAvg(beta=CUT_PERCENT / 100),
            of_ranks(cut, trainers - cut),
        ),
        Case("krum", {"faulty": bad}, lambda: flower.Krum(num_malicious_nodes=bad), of_best(bad, 1)),
        Case(
            "multi_krum",
            {"faulty": bad, "chosen": best_of},
            lambda: flower.MultiKrum(num_malicious_nodes=bad, num_nodes_to_select=best_of),
            of_best(bad, best_of),
        ),
        Case("bulyan", {"faulty": bad}, lambda: flower.Bulyan(num_malicious_nodes=bad), of_bulyan(bad)),
    ]


@dataclass(slots=True)
class Found:
    """Of one rule, over all seeds and rounds."""

    values: int = 0
    left_out: int = 0
    """Where Flower takes other updates or values, by its distances in float32."""
    differing: int = 0
    largest: float = 0.0
    bound: float = 0.0
    """Where the bound is largest."""
    share: float = 0.0
    """The most of its own bound that any difference takes."""
    by_order: int = 0
    """How many of Flower's values change when the same updates come in another order."""
    dtypes: set[str] = field(default_factory=set)

    def take(self, theirs: NDArray[Any], ours: F32, bound: Values, sure: NDArray[np.bool_]) -> None:
        difference = np.abs(theirs.astype(np.float64) - ours)[sure]
        self.values += difference.size
        self.left_out += sure.size - difference.size
        if not difference.size:
            return
        self.differing += int(np.count_nonzero(difference))
        self.largest = max(self.largest, float(difference.max()))
        self.bound = max(self.bound, float(bound[sure].max()))
        self.share = max(self.share, float((difference / bound[sure]).max()))
        self.dtypes.add(str(theirs.dtype))

    def row(self, rule: str) -> dict[str, Any]:
        return {
            "rule": rule,
            "values": self.values,
            "left_out": self.left_out,
            "differing": round(self.differing / max(1, self.values), 4),
            "largest_difference": float(f"{self.largest:.2g}"),
            "largest_bound": float(f"{self.bound:.2g}"),
            "most_of_its_bound": round(self.share, 3),
            "flower_by_order": round(self.by_order / (self.values + self.left_out), 4),
            "flower_returns": " ".join(sorted(self.dtypes)),
        }


def drawn(chance: np.random.Generator, base: F32, trainers: int, outliers: int) -> F32:
    """Trained weights. The changes of the outliers are several times as large, so that whoever looks for them finds
    the same ones."""
    scales = np.full((trainers, 1), CHANGE_SCALE)
    scales[chance.permutation(trainers)[:outliers]] *= 5
    changes = chance.standard_normal((trainers, base.size)) * scales
    trained: F32 = (base + changes).astype(np.float32)
    return trained


def compare(case: Case, arguments: argparse.Namespace) -> Found:
    found, trainers = Found(), arguments.trainers
    for seed in range(arguments.seeds):
        chance = np.random.default_rng(seed)
        base = (chance.standard_normal(arguments.parameters) * BASE_SCALE).astype(np.float32)
        rules = ruled(rules_of("flower", arguments.parameters, trainers, encoding="f32"), case.rule, case.settings)
        if case.weighted:
            rules = replace(rules, weights="examples", cap=1000)
        job, strategy = Job(rules, base), case.strategy()
        grid, error = grid_of(rules), Moments.zeros(arguments.parameters)
        for number in range(1, arguments.rounds + 1):
            base, old = job.model, job.moments
            trained = drawn(chance, base, trainers, 2 * arguments.bad)
            deltas = trained - base
            examples = chance.integers(1, 1001, trainers).tolist() if case.weighted else [1] * trainers
            job.close(deltas, examples)
            # Flower corrects adam's rate with the number of the round and one more.
            before, order = deepcopy(strategy), chance.permutation(trainers)
            theirs = flower_round(strategy, number - 1, base, trained, examples)
            other = flower_round(before, number - 1, base, trained[order], [examples[each] for each in order])
            shares = np.array(examples) / sum(examples)
            half_a_step = (
                trainers / 2 / grid.denominator(sum(examples)) if case.weighted else 0.5 ** (grid.unweighted_bits + 1)
            )
            inputs = Inputs(base, trained, deltas, shares, half_a_step)
            round = Round(number, inputs, job.settings, old, job.moments, job.model, error, np.ones(base.size, bool))
            bound = model_error(case.bound(round), job.model)
            error = round.error
            found.take(theirs, job.model, bound, round.sure)
            found.by_order += int(np.count_nonzero(theirs != other))
    return found


def same_choices(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How often float32 distances of whole models lead to the choice that exact ones of their changes do."""
    rows = []
    for scale in arguments.model_scales:
        agreed = {"krum": 0, "multi_krum": 0, "bulyan, one shot": 0, "bulyan, one by one": 0}
        for seed in range(arguments.draws):
            chance = np.random.default_rng([seed, 1])
            base = (chance.standard_normal(arguments.choice_parameters) * scale).astype(np.float32)
            trained = drawn(chance, base, arguments.trainers, 0)
            exact = squared_distances(trained - base)
            left = arguments.trainers - 2 * arguments.bad
            for name, wanted in (("krum", 1), ("multi_krum", arguments.best), ("bulyan, one shot", left)):
                theirs = flower_choice(trained, arguments.bad, wanted)
                agreed[name] += theirs == set(best(exact, arguments.bad, wanted))
            agreed["bulyan, one by one"] += theirs == set(selected(exact, arguments.bad))
        rows.append({"model_scale": scale, "draws": arguments.draws} | agreed)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, default=23)
    parser.add_argument("--bad", type=int, default=4, help="that Krum and Bulyan are told to expect")
    parser.add_argument("--best", type=int, default=9, help="updates that multi_krum averages")
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=100, help="of choices, for each scale of the model")
    parser.add_argument("--choice-parameters", type=int, default=10_000)
    parser.add_argument("--model-scales", type=float, nargs="+", default=[0.0, 0.1, 1.0, 10.0])
    parser.add_argument("--rules", nargs="+", help="these alone")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    chosen = [
        each
        for each in cases(arguments.trainers, arguments.bad, arguments.best)
        if not arguments.rules or each.rule in arguments.rules
    ]
    rows = [compare(case, arguments).row(case.rule) for case in chosen]
    print(table(rows))
    choices = same_choices(arguments)
    print(f"\ndraws of which the choice is the same; changes of scale {CHANGE_SCALE}\n{table(choices)}")
    if arguments.out is not None:
        report = {
            "benchmark": "rules beside Flower",
            "command": " ".join(["python", "-m", "benchmarks.flower_rules", *sys.argv[1:]]),
            "flower": version("flwr"),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rules": rows,
            "choices": choices,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    if any(row["most_of_its_bound"] > 1 for row in rows):
        raise SystemExit("a difference is beyond its bound")


if __name__ == "__main__":
    main()
