"""A job file on a chain: create its job, train or evaluate in it, follow it, as the account's roles allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cli.output import line, on_terminal, remark, short
from fl.client.apps import App, Holdings, Named, holdings
from fl.client.errors import BadInput, RefusedByChain
from fl.client.jobfile import JobFile
from fl.client.partition import Partition
from fl.client.report import RoundReport, report_of
from fl.client.sync import Job, Network
from fl.client.trackers import Tracker
from fl.client.trainer import Answered, evaluate_for, train_for
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


def existing(network: Network, file: JobFile) -> Job | None:
    """The file's job, if there is one of its name, for its code."""
    try:
        found = network.job(file.name)
    except RefusedByChain as error:
        if error.code != "UNKNOWN_JOB":
            raise
        return None
    check_same_app(found, file.load_app(), "the file has another")
    return found


def created(network: Network, file: JobFile, trainers: int | None = None) -> Job:
    """The file's job: the one of its name, or a new one."""
    return existing(network, file) or network.create_drafted(file.draft(trainers))


def awaited(network: Network, name_or_id: str, wait_s: float) -> Job:
    """A job, once somebody has created it."""
    ends, waiting = time.monotonic() + wait_s, False
    while True:
        try:
            return network.job(name_or_id)
        except RefusedByChain as error:
            if error.code != "UNKNOWN_JOB" or time.monotonic() > ends:
                raise
        if not waiting:
            remark(f"There is no job {name_or_id} yet; waiting until its creator has made it.")
            waiting = True
        time.sleep(_LOOK_AGAIN_S)


def check_same_app(job: Job, named: Named, other: str) -> None:
    """Code is known by its digest; an app that comes with Quorate by its name."""
    rules = job.rules
    if named.digest != rules.app_digest or (named.name != rules.app and not named.digest):
        raise BadInput(
            "WRONG_APP",
            f"The job {job.name} is for the app {rules.app or '(none)'}, and {other}, or another version.",
            "Train with the code that the members agreed on.",
        )


class Answers:
    """What this account has answered, a line each."""

    def __init__(self) -> None:
        self.given: list[Answered] = []

    def tell(self, answered: Answered) -> None:
        if not self.given and not on_terminal():
            line("\t".join(_ANSWER_COLUMNS))
        self.given.append(answered)
        receipt = answered.receipt
        metrics = " ".join(f"{name}={value:.4g}" for name, value in answered.metrics.items())
        if on_terminal():
            line(
                f"round {answered.round:<4} {answered.kind} {short(answered.model)} on {answered.examples} examples"
                f"{', ' if metrics else ''}{metrics}: {receipt.status} {short(receipt.tx)}"
            )
        else:
            told = (answered.round, answered.kind, answered.model, answered.examples, metrics, receipt.status)
            line("\t".join(map(str, (*told, receipt.height, receipt.tx))))

    def data(self) -> list[dict[str, object]]:
        return [
            {
                "round": each.round,
                "kind": each.kind,
                "model": each.model,
                "examples": each.examples,
                "metrics": dict(each.metrics),
                "receipt": {
                    "tx": each.receipt.tx,
                    "status": each.receipt.status,
                    "height": each.receipt.height,
                    "proof": str(each.receipt.path),
                },
            }
            for each in self.given
        ]


_ANSWER_COLUMNS = ("ROUND", "KIND", "MODEL", "EXAMPLES", "METRICS", "STATUS", "HEIGHT", "TX")


def roles_in(network: Network, wanted: set[Role]) -> set[Role]:
    """Those of this account; raises if none of them is wanted."""
    member = network.member()
    roles = {Role(role) for role in member.roles} & wanted if member is not None and not member.revoked else set()
    if not roles:
        words = " nor ".join(sorted(role.value for role in wanted))
        what = f"The account {network.account[:16]}… is neither {words} on {network.name}."
        raise BadInput("NO_ROLE", what, "Ask a registrar, who grants roles by quorate member register.")
    return roles


def take_part(
    job: Job,
    app: App,
    held: Holdings,
    part: Part,
    roles: set[Role],
    accept: str | None,
    seed: int,
    *,
    tell: Callable[[Answered], None],
    trackers: Sequence[Tracker] = (),
) -> None:
    """Until the job is over."""
    acts: list[Callable[[], None]] = []
    if Role.TRAINER in roles:
        job.join(accept)
        acts.append(
            lambda: train_for(job, app, held.parts[part.number - 1], seed + part.number, trackers=trackers, tell=tell)
        )
    if Role.EVALUATOR in roles and job.rules.evaluation.every:
        job.join(accept, role=Role.EVALUATOR.value)
        # Of two acts the first one tells the trackers.
        listening = () if acts else trackers
        acts.append(
            lambda: evaluate_for(job, app, held.shares(part.of)[part.number - 1], trackers=listening, tell=tell)
        )
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


def held_in(named: Named, part: Part) -> Holdings:
    """Without a file that says how, the app's data falls to its parts by chance alone."""
    return holdings(named.app, part.of, Partition())


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
