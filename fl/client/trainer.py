"""A trainer as a process: it joins a job, trains a small classifier on its own data each round, and submits.

    python -m fl.client.trainer --network consortium.toml --key alice.key --job digits --data share.npz

It waits for a job that does not exist yet, survives nodes that go away, and may itself be killed and started again at
any time. The job's config gives `lr`, `epochs`, `batch` and `momentum`. With `--role evaluator` it measures the models
on its data instead.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.client.apps import App, Digits, answered_group, named_metrics
from fl.client.digits import deal, load_digits, read
from fl.client.errors import BadInput, QuorateError, RefusedByChain, Unreachable
from fl.client.keyfile import read_private
from fl.client.perceptron import Data
from fl.client.receipt import Receipt
from fl.client.setting import app_at, setting_of
from fl.client.sync import Job, Network, connect
from fl.client.trackers import Tracker, newest_told, tell_round, tell_update
from fl.records import Role

_LOOK_AGAIN_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    try:
        data = _data(given.data, given.digits)
        passphrase = read_private(given.passphrase_file).rstrip(b"\r\n") if given.passphrase_file else None
        with _connected(given.network, given.key, passphrase, given.home, given.wait) as network:
            job = _job(network, given.job, given.wait)
            job.join(given.accept, role=given.role)
            say(f"joined {job.name} as {network.account[:16]} with {len(data)} examples")
            if given.role == Role.EVALUATOR:
                evaluate_for(job, Digits(), data)
            else:
                train_for(job, Digits(), data, given.seed)
        say("the job is over")
    except QuorateError as error:
        print(f"{error.code}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What this account has answered to a round, or to an evaluation, and what became of that."""

    kind: str
    round: int
    model: str
    """The CID of what was trained on or measured."""
    examples: int
    metrics: Mapping[str, float]
    receipt: Receipt


TRAINED, EVALUATED = "trained", "evaluated"


def say_answer(answered: Answered) -> None:
    receipt = answered.receipt
    if answered.kind == EVALUATED:
        say(f"evaluation of round {answered.round}: {receipt.status} at height {receipt.height}")
        return
    measured = "".join(f"{name} {value:.4f}, " for name, value in answered.metrics.items())
    say(f"round {answered.round}: {measured}{receipt.status} at height {receipt.height}")


def train_for(
    job: Job,
    app: App,
    part: Any,
    seed: int,
    *,
    trackers: Sequence[Tracker] = (),
    tell: Callable[[Answered], None] = say_answer,
) -> None:
    """Answers every round that this account is asked in, until the job is over. Trackers hear of each update when its
    fate is proven, and of rounds in between."""
    told = newest_told(trackers)
    for task in job.tasks():
        told = _tell(job, trackers, told)
        acting = app_at(app, setting_of(job, task.round, task.config))
        chance = np.random.default_rng([seed, task.round])
        weights, examples, metrics = acting.train(task.model, part, task.config, chance)
        named = named_metrics(job.rules.metrics, metrics)
        number, given = answered_group(job.rules, weights)
        group = job.rules.groups[number].name if job.rules.groups else None
        receipt = task.submit(weights=given, examples=examples, metrics=named, group=group)
        tell(Answered(TRAINED, task.round, task.model_cid, examples, named, receipt))
        tell_update(trackers, receipt, named)
    _tell_rest(job, trackers, told)


def evaluate_for(
    job: Job,
    app: App,
    share: Any,
    *,
    trackers: Sequence[Tracker] = (),
    tell: Callable[[Answered], None] = say_answer,
) -> None:
    """Answers every evaluation that this account is asked in, until the job is over. Trackers hear of rounds in
    between."""
    told = newest_told(trackers)
    for asked in job.evaluations():
        told = _tell(job, trackers, told)
        acting = app_at(app, setting_of(job, asked.round, asked.config))
        examples, metrics = acting.evaluate(asked.model, share)
        named = named_metrics(asked.metrics, metrics)
        receipt = asked.submit(metrics=named, examples=examples)
        tell(Answered(EVALUATED, asked.round, asked.model_cid, examples, named, receipt))
    _tell_rest(job, trackers, told)


def _tell(job: Job, trackers: Sequence[Tracker], told: int) -> int:
    """The newest round that they know of then."""
    if not trackers:
        return told
    try:
        reports = job.concluded(told)
    except Unreachable:
        # They hear of it before the next round.
        return told
    for report in reports:
        tell_round(trackers, report)
    return reports[-1].round if reports else told


def _tell_rest(job: Job, trackers: Sequence[Tracker], told: int) -> None:
    if trackers:
        for report in job.rounds(told):
            tell_round(trackers, report)


def say(text: str) -> None:
    print(text, flush=True)


def _connected(network: Path, key: Path, passphrase: bytes | None, home: Path | None, wait_s: float) -> Network:
    ends = time.monotonic() + wait_s
    while True:
        try:
            return connect(network, key, passphrase=passphrase, home=home)
        except Unreachable as error:
            if time.monotonic() > ends:
                raise
            say(f"waiting for the network: {error.code}")


def _job(network: Network, name: str, wait_s: float) -> Job:
    ends = time.monotonic() + wait_s
    said = False
    while True:
        try:
            return network.job(name)
        except RefusedByChain as error:
            if error.code != "UNKNOWN_JOB" or time.monotonic() > ends:
                raise
        if not said:
            say(f"waiting for the job {name}")
            said = True
        time.sleep(_LOOK_AGAIN_S)


def _data(file: Path | None, share: str | None) -> Data:
    if (file is None) == (share is None):
        raise BadInput("ONE_OF_TWO", "Give exactly one of --data and --digits.", "See --help.")
    if file is not None:
        return read(file)
    number, _, of = (share or "").partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) <= 256):
        raise BadInput("BAD_SHARE", f"'{share}' is no share.", "The third of eight is --digits 3/8.")
    return deal(load_digits()[0], int(of))[int(number) - 1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fl.client.trainer", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", type=Path, required=True, help="the network file, consortium.toml")
    parser.add_argument("--key", type=Path, required=True, help="the account's key file")
    parser.add_argument("--passphrase-file", type=Path, help="holds the key's passphrase; without it, it has none")
    parser.add_argument("--job", required=True, help="name or id")
    parser.add_argument("--role", default=Role.TRAINER.value, choices=(Role.TRAINER.value, Role.EVALUATOR.value))
    parser.add_argument("--accept", help="hash of the rules that were agreed on; without it, the job's own")
    parser.add_argument("--data", type=Path, help="an .npz file with x and y")
    parser.add_argument("--digits", metavar="I/K", help="share I of K of scikit-learn's digits")
    parser.add_argument("--seed", type=int, default=0, help="of the order of examples")
    parser.add_argument("--home", type=Path, help="for receipts and what is in flight; else QUORATE_HOME, ~/.quorate")
    parser.add_argument("--wait", type=float, default=600.0, metavar="SECONDS", help="for the network and the job")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
