"""A job file on a chain: create its job, train or evaluate in it, follow it, as the account's roles allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cli.output import remark
from fl.client.apps import App, Holdings, Named, holdings
from fl.client.errors import BadInput, RefusedByChain
from fl.client.jobfile import JobFile
from fl.client.report import RoundReport, report_of
from fl.client.sync import Job, Network
from fl.client.trainer import evaluate_for, train_for
from fl.evaluators import UNDER_WAY
from fl.records import JobStatus, Phase, Role

_LOOK_AGAIN_S = 0.5
_OVER = (JobStatus.FINISHED, JobStatus.STOPPED, JobStatus.PAUSED)


@dataclass(frozen=True, slots=True)
class Part:
    """The share `number` of `of` of the data that is here."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) <= 10_000):
            raise BadInput("BAD_SHARE", f"'{text}' is no share.", "The third of eight is 3/8.")
        return cls(int(number), int(of))


def created(network: Network, file: JobFile, trainers: int | None = None) -> Job:
    """The file's job: the one of its name, or a new one."""
    try:
        found = network.job(file.name)
    except RefusedByChain as error:
        if error.code != "UNKNOWN_JOB":
            raise
        return network.create_drafted(file.draft(trainers))
    check_same_app(found, file)
    return found


def awaited(network: Network, file: JobFile, wait_s: float) -> Job:
    """The file's job, once somebody has created it."""
    ends, waiting = time.monotonic() + wait_s, False
    while True:
        try:
            found = network.job(file.name)
        except RefusedByChain as error:
            if error.code != "UNKNOWN_JOB" or time.monotonic() > ends:
                raise
            if not waiting:
                remark(f"There is no job {file.name} yet; waiting until its creator has made it.")
                waiting = True
            time.sleep(_LOOK_AGAIN_S)
            continue
        check_same_app(found, file)
        return found


def check_same_app(job: Job, file: JobFile) -> None:
    named, rules = file.load_app(), job.rules
    if (named.name, named.digest) != (rules.app, rules.app_digest):
        raise BadInput(
            "WRONG_APP",
            f"The job {job.name} is for the app {rules.app or '(none)'}, and the file has another, or another version.",
            "Train with the code that the members agreed on.",
        )


def take_part(job: Job, app: App, held: Holdings, part: Part, roles: set[Role], accept: str | None, seed: int) -> None:
    """Until the job is over."""
    acts: list[Callable[[], None]] = []
    if Role.TRAINER in roles:
        job.join(accept)
        acts.append(lambda: train_for(job, app, held.parts[part.number - 1], seed + part.number))
    if Role.EVALUATOR in roles and job.rules.evaluation.every:
        job.join(accept, role=Role.EVALUATOR.value)
        acts.append(lambda: evaluate_for(job, app, held.shares(part.of)[part.number - 1]))
    _side_by_side(acts)


def _side_by_side(acts: list[Callable[[], None]]) -> None:
    """All but the last in threads of their own; the first error of any is raised."""
    failures: list[BaseException] = []

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(act,), daemon=True) for act in acts[:-1]]
    for thread in threads:
        thread.start()
    for act in acts[-1:]:
        act()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


def held_by(file: JobFile, named: Named, part: Part) -> Holdings:
    return holdings(named.app, part.of, file.partition)


def followed(job: Job, app: App, held_out: object, alive: Callable[[], None] = lambda: None) -> Iterator[RoundReport]:
    """Each round as it is over, until the job is; `alive` raises if there is nothing to wait for."""
    told = 0
    while True:
        alive()
        status = job.status()
        while told < status.round:
            record, evaluation = job.round(told + 1), job.evaluation(told + 1)
            if record is None or record.phase not in (Phase.CLOSED, Phase.FAILED):
                break
            if evaluation is not None and evaluation.phase in UNDER_WAY:
                break
            _, measured = app.evaluate(job.model(record.number), held_out) if record.model else (0, {})
            yield report_of(job.rules, record, evaluation, held_out=dict(measured))
            told += 1
        if status.status in _OVER and told >= status.round:
            return
        time.sleep(_LOOK_AGAIN_S)
