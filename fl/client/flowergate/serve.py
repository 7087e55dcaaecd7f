"""Between the job and the desk: every task of the account becomes a question to the SuperNode, every answer an update.

A round that closes before the answer is there withdraws the question. An app that fails or answers wrongly is asked
again, three times in all; then the round is skipped, with a line that says so, and the next one is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from fl.client.apps import answered_group, named_metrics
from fl.client.errors import BadFile, BadInput, RefusedByChain, Unreachable
from fl.client.evaluations import AsyncEvaluation
from fl.client.flowergate.desk import HOLD_S, Desk
from fl.client.flowergate.door import opened_door
from fl.client.flowergate.fab import Bundle
from fl.client.flowergate.forms import EVALUATE, TRAIN, Answer, Question, Records, WrongReply
from fl.client.flowergate.locals import LocalTensors
from fl.client.flowergate.parcels import Setting, value_of
from fl.client.flowergate.visitors import Visitors
from fl.client.flowergate.wire import Override, Run, RunStatus, Scalar
from fl.client.job import AsyncJob
from fl.client.jobdraft import Arrays
from fl.client.receipt import Receipt
from fl.client.tasks import AsyncTask
from fl.jobrules import SYNCHRONOUS
from fl.records import EvaluationPhase, JobRules, JobStatus, Phase
from fl.tensors.layout import FROZEN

log = logging.getLogger("quorate.flower")

FLOWER = "flower:"
"""Before the name of an app in a job."""

_TRIES = 3
_LOOK_AGAIN_S = 2.0
_MOST_TOLD = 16
"""Of an answer's metrics, in a line for people."""
_OVER = (JobStatus.FINISHED, JobStatus.STOPPED)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the gateway listens, and whom it lets in."""

    host: str
    port: int
    certificate: Path | None = None
    private_key: Path | None = None
    keys: tuple[bytes, ...] = ()
    is_insecure: bool = False

    def tls(self) -> ssl.SSLContext | None:
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ValueError) as error:
            raise BadFile(
                "BAD_CERTIFICATE", f"The certificate {self.certificate} cannot be used: {error}.", "Check both files."
            ) from None
        return context

    def check(self) -> None:
        """Raises BadInput for an address that others reach, if they could read or join in."""
        if _is_loopback(self.host) or self.is_insecure:
            return
        if self.certificate is None or not self.keys:
            raise BadInput(
                "INSECURE_ADDRESS",
                f"Others can reach {self.host}: whoever calls could train in this member's name, or read its models.",
                "Listen on 127.0.0.1; or give --tls-cert, --tls-key and --supernode-key; or say --insecure.",
            )


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served: the app, and in which of its ways."""

    bundle: Bundle
    records: Records
    run_config: Mapping[str, Setting] = field(default_factory=dict)
    is_any_app: bool = False
    hold_s: float = HOLD_S

    def run(self, job: str) -> Run:
        """A SuperNode remembers runs, and what an app left in its context under the series: another app or another
        configuration is another run, of the same series."""
        config = sorted(self.run_config.items())
        overrides = tuple(Override(name, _scalar(value)) for name, value in config)
        return Run(
            run_id=_number("run", job, self.bundle.fab_hash, repr(config)),
            fab_id=self.bundle.fab_id,
            fab_version=self.bundle.version,
            override_config=overrides,
            fab_hash=self.bundle.fab_hash,
            status=RunStatus("running"),
            series_id=_number("series", job),
        )


def check_app(job: AsyncJob, serving: Serving) -> None:
    """Raises BadInput if the job is for other code, or the run sets what the app does not know; PolicyForbids for code
    that the site does not admit, whatever a job calls it."""
    rules, bundle = job.rules, serving.bundle
    job.network.policy.read().check_app(f"{FLOWER}{bundle.client}", bundle.digest)
    named = rules.app.removeprefix(FLOWER)
    is_other = bool(rules.app) and (named != bundle.client or rules.app_digest not in (b"", bundle.digest))
    if is_other and not serving.is_any_app:
        raise BadInput(
            "WRONG_APP",
            f"The job {job.name} is for the app {rules.app}, and this is {bundle.client}, or another version of it.",
            "Serve the code that the members agreed on, or say --any-app.",
        )
    unknown = serving.run_config.keys() - bundle.config.keys()
    if unknown:
        known = ", ".join(bundle.config) or "none"
        raise BadInput("UNKNOWN_KEY", f"The app has no setting {', '.join(sorted(unknown))}.", f"There are: {known}.")


async def serve(
    job: AsyncJob, serving: Serving, place: Place, *, trains: bool, evaluates: bool, say: Callable[[str], None]
) -> None:
    """Until the job is over. The account has joined it."""
    check_app(job, serving)
    place.check()
    tls = place.tls()
    spool = _spool(job.network.home / "flower")
    own = LocalTensors(job.rules.schema, spool.parent / f"{job.id}.npz")
    visitors = Visitors(place.keys)
    desk = Desk(serving.run(job.id), serving.bundle.content, serving.records, visitors, spool, hold_s=serving.hold_s)
    try:
        runner = await opened_door(desk, place.host, place.port, tls)
    except OSError as error:
        raise BadInput(
            "NO_ADDRESS", f"{place.host}:{place.port} cannot be listened on: {error.strerror}.", "Name another."
        ) from None
    say(f"a SuperNode is awaited at {place.host}:{place.port}, with {serving.records} records")
    try:
        async with asyncio.TaskGroup() as group:
            if trains:
                group.create_task(_train(job, desk, own, say))
            if evaluates:
                group.create_task(_evaluate(job, desk, own, say))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        await runner.cleanup()
        await asyncio.to_thread(shutil.rmtree, spool, ignore_errors=True)


async def _train(job: AsyncJob, desk: Desk, own: LocalTensors, say: Callable[[str], None]) -> None:
    async for task in job.tasks():
        question = Question(TRAIN, task.round, own.beside(task.model), task.config)
        await _settled(desk, question, _submission(job, task, own), _is_collecting(job, task.round), say)


def _submission(job: AsyncJob, task: AsyncTask, own: LocalTensors) -> Callable[[Answer], Awaitable[Receipt]]:
    rules = job.rules

    async def submit(answer: Answer) -> Receipt:
        number, weights = answered_group(rules, answer.arrays)
        _check_frozen(rules, task.model, answer.arrays)
        own.keep(answer.arrays)
        metrics = named_metrics(rules.metrics, answer.metrics)
        group = rules.groups[number].name if rules.groups else None
        return await task.submit(weights=weights, examples=answer.examples, metrics=metrics, group=group)

    return submit


async def _evaluate(job: AsyncJob, desk: Desk, own: LocalTensors, say: Callable[[str], None]) -> None:
    async for asked in job.evaluations():
        question = Question(EVALUATE, asked.round, own.beside(asked.model), asked.config)
        await _settled(desk, question, _measurement(asked), _is_measured(job, asked.round), say)


def _measurement(asked: AsyncEvaluation) -> Callable[[Answer], Awaitable[Receipt]]:
    async def submit(answer: Answer) -> Receipt:
        metrics = named_metrics(asked.metrics, answer.metrics)
        return await asked.submit(metrics=metrics, examples=answer.examples)

    return submit


async def _settled(
    desk: Desk,
    question: Question,
    submit: Callable[[Answer], Awaitable[Receipt]],
    is_open: Callable[[], Awaitable[bool]],
    say: Callable[[str], None],
) -> None:
    """The question answered and the answer sent, or given up."""
    for attempt in range(1, _TRIES + 1):
        try:
            answer = await _unless_over(desk, question, is_open)
            if answer is None:
                say(f"{question}: over before the SuperNode's answer")
                return
            receipt = await submit(answer)
        except (WrongReply, BadInput, RefusedByChain) as error:
            log.warning("%s, try %d of %d: %s", question, attempt, _TRIES, error)
            continue
        named = [each for each in sorted(answer.metrics.items()) if each[0].isprintable()][:_MOST_TOLD]
        told = "".join(f"{name[:64]} {value:.4f}, " for name, value in named)
        say(f"{question}: {told}{receipt.status} at height {receipt.height}")
        return
    say(f"{question}: skipped, since the app gave no answer that can be used")


async def _unless_over(desk: Desk, question: Question, is_open: Callable[[], Awaitable[bool]]) -> Answer | None:
    asking = asyncio.create_task(desk.ask(question))
    try:
        while True:
            done, _ = await asyncio.wait({asking}, timeout=_LOOK_AGAIN_S)
            if done:
                return asking.result()
            if not await is_open():
                return None
    finally:
        asking.cancel()
        await asyncio.wait({asking})


def _check_frozen(rules: JobRules, model: Arrays, given: Arrays) -> None:
    for each in rules.schema.tensors:
        if each.role == FROZEN and each.name in given and not np.array_equal(given[each.name], model[each.name]):
            raise BadInput(
                "FROZEN_TENSOR",
                f"The app changes {each.name}, which is frozen in this job.",
                "Make it local where the job is created, or leave it alone in training.",
            )


def _is_collecting(job: AsyncJob, number: int) -> Callable[[], Awaitable[bool]]:
    async def is_open() -> bool:
        try:
            standing = await job.standing()
        except Unreachable:
            return True
        current = standing.round
        if standing.job.status in _OVER or current is None:
            return False
        # Without rounds an update may have an older base.
        is_current = current.number == number and current.phase == Phase.COLLECTING
        return is_current or job.rules.mode != SYNCHRONOUS

    return is_open


def _is_measured(job: AsyncJob, number: int) -> Callable[[], Awaitable[bool]]:
    async def is_open() -> bool:
        try:
            found = await job.evaluation(number)
        except Unreachable:
            return True
        return found is not None and found.phase == EvaluationPhase.OPEN

    return is_open


def _spool(directory: Path) -> Path:
    """A directory for this process; those of processes that are gone are removed, where the system tells."""
    processes = Path("/proc")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in directory.iterdir():
            if each.name.isdecimal() and (processes / "self").exists() and not (processes / each.name).exists():
                shutil.rmtree(each, ignore_errors=True)
        made = directory / str(os.getpid())
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{directory} cannot be written: {error.strerror}.", "Check --home.") from error
    return made


def _number(*parts: str) -> int:
    """Of 63 bits, and not among the small ones that Flower gives a meaning."""
    return int.from_bytes(sha256("\0".join(("quorate-flower", *parts)).encode()).digest()[:8], "big") >> 1 | 1 << 62


def _scalar(value: Setting) -> Scalar:
    found = value_of(value)
    return Scalar(double=found.double, sint64=found.sint64, truth=found.truth, string=found.string)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
