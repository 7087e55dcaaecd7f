"""A job as a trainer has it: its rounds come as tasks, each with a verified model, until the job is over."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from chain.cid import cid_text, raw_cid
from fl.client.errors import BadInput, RefusedByChain, Unreachable, Unverified
from fl.client.evaluations import AsyncEvaluation
from fl.client.feedback import FED_BACK, Feedback
from fl.client.home import Pending
from fl.client.jobdraft import Arrays
from fl.client.measures import examples_of, metric_values
from fl.client.receipt import Receipt
from fl.client.report import RoundReport, report_of
from fl.client.site.policy import Policy
from fl.client.tasks import AsyncTask
from fl.client.trackers import Tracker, newest_told, tell_round
from fl.client.transfer.blobfile import mapped
from fl.client.transfer.blobs import Progress, quiet
from fl.client.wakeup import Wakeup
from fl.cohort import has_answered, is_listed, read_seats
from fl.errors import Refused
from fl.evaluation import SubmitEvaluation
from fl.evaluators import UNDER_WAY
from fl.jobrules import rules_hash, zero_model_cid
from fl.jobs import JoinJob, LeaveJob, PauseJob, ResumeJob, StopJob
from fl.records import (
    Answer,
    Answered,
    Candidates,
    Evaluation,
    EvaluationPhase,
    Evaluators,
    Job,
    JobRules,
    JobStatus,
    Joined,
    Phase,
    Role,
    Round,
)
from fl.rounds import CheckIn, SubmitUpdate
from fl.state import (
    answer_key,
    answered_key,
    candidates_key,
    evaluation_cohort_key,
    evaluation_key,
    evaluators_key,
    job_key,
    joined_key,
    round_key,
)
from fl.tensors.encodings import Place, UpdateForm, encoded
from fl.tensors.layout import AVERAGED
from fl.tensors.model import model_form, parse_model
from fl.transactions import read_body
from fl.updates import form_of, groups_of

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork

A = TypeVar("A", "AsyncTask", AsyncEvaluation)

log = logging.getLogger("quorate.client")

_CHECK_IN_OVER = frozenset({"LATE", "DUPLICATE"})
_OVER = (JobStatus.FINISHED, JobStatus.STOPPED)
_READ_AT_ONCE = 16
_SOON_S = 0.05
_LOOK_AGAIN_S = 2.0
"""Events only make the loop faster; this is how often it looks when none comes."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job is, for one member of it."""

    job: Job
    round: Round | None
    joined: Joined | None


class AsyncJob:
    """Made by `AsyncNetwork.job`. `rules` are proven, and never change."""

    def __init__(self, network: AsyncNetwork, identity: bytes, rules: JobRules) -> None:
        self.network = network
        self.rules = rules
        self._id = identity

    @property
    def id(self) -> str:
        return self._id.hex()

    @property
    def name(self) -> str:
        return self.rules.name

    @property
    def rules_hash(self) -> str:
        """What a member accepts by joining."""
        return rules_hash(self.rules).hex()

    @property
    def averaged(self) -> list[str]:
        return [each.name for each in self.rules.schema.tensors if each.role == AVERAGED]

    # Reading

    async def status(self) -> Job:
        """The job's proven record."""
        found = await self.network.record(Job, job_key(self._id))
        if found is None:
            raise RefusedByChain.of("UNKNOWN_JOB")
        return found

    async def round(self, number: int) -> Round | None:
        """A round's proven record, None before it opens."""
        return await self.network.record(Round, round_key(self._id, number))

    async def joined(self, account: str | None = None) -> Joined | None:
        who = bytes.fromhex(account) if account is not None else self.network.sender.account
        return await self.network.record(Joined, joined_key(self._id, who))

    async def evaluation(self, round: int) -> Evaluation | None:
        """The proven record of what evaluators measured of this round's model; None if they were not asked."""
        return await self.network.record(Evaluation, evaluation_key(self._id, round))

    async def reports(self, first: int = 1, last: int | None = None) -> list[RoundReport]:
        """Of the rounds from `first` to `last` that are over: what was reported and measured, proven."""
        newest = (await self.status()).round
        numbers = range(max(1, first), (newest if last is None else min(last, newest)) + 1)
        reports: list[RoundReport] = []
        for start in range(0, len(numbers), _READ_AT_ONCE):
            reports += filter(None, await asyncio.gather(*map(self._report, numbers[start : start + _READ_AT_ONCE])))
        return reports

    async def concluded(self, after: int = 0) -> list[RoundReport]:
        """Of the rounds after this one, as far as nothing more is to come of them: they are over, and measured, if
        evaluators are asked."""
        newest = (await self.status()).round
        reports: list[RoundReport] = []
        for start in range(after + 1, newest + 1, _READ_AT_ONCE):
            numbers = range(start, min(start + _READ_AT_ONCE, newest + 1))
            for report in await asyncio.gather(*(self._report(number, measured=True) for number in numbers)):
                if report is None:
                    return reports
                reports.append(report)
        return reports

    async def rounds(self, after: int = 0) -> AsyncGenerator[RoundReport, None]:
        """Each round after this one as it is concluded, until the job is over. Nodes that do not answer are waited
        for."""
        wakeup = Wakeup(self.network.nodes, self.id)
        try:
            while True:
                try:
                    seen, job = wakeup.seen(), await self.status()
                    reports = await self.concluded(after)
                except Unreachable as error:
                    log.warning("%s: waiting for the network: %s", self.name, error)
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    continue
                for report in reports:
                    yield report
                    after = report.round
                if job.status in _OVER and after >= job.round:
                    return
                await wakeup.wait(seen, _LOOK_AGAIN_S)
        finally:
            await wakeup.close()

    async def follow(self, *trackers: Tracker) -> None:
        """Tell trackers of each round that they do not know of yet, until the job is over; `fl.client.trackers` has
        them. Each is called in a thread, one after the other."""
        async for report in self.rounds(newest_told(trackers)):
            await asyncio.to_thread(tell_round, trackers, report)

    async def _report(self, number: int, measured: bool = False) -> RoundReport | None:
        """Of a round that is over; or None. A `measured` one has no evaluation under way."""
        current = await self.round(number)
        if current is None or current.phase not in (Phase.CLOSED, Phase.FAILED):
            return None
        # Read after it: the block that closes a round opens its evaluation.
        evaluation = await self.evaluation(number)
        if measured and evaluation is not None and evaluation.phase in UNDER_WAY:
            return None
        return report_of(self.rules, current, evaluation)

    async def is_evaluator(self, account: str | None = None) -> bool:
        who = bytes.fromhex(account) if account is not None else self.network.sender.account
        return await self._lists(evaluators_key(self._id), who)

    async def _lists(self, key: bytes, account: bytes) -> bool:
        found = await self.network.record(Evaluators, key)
        return found is not None and account in found.accounts

    async def model_cid(self, round: int | None = None) -> str:
        """Of the newest model, or of the one that a round made (0: the initial)."""
        return cid_text(await self._model_cid(round))

    async def model_file(self, round: int | None = None, *, progress: Progress = quiet) -> tuple[str, Path]:
        """CID and verified safetensors file of a model. The file is the home's, where the last few are kept: copy it if
        you want to have it longer."""
        cid = await self._model_cid(round)
        return cid_text(cid), await self._file(cid, progress)

    async def model_bytes(self, round: int | None = None) -> tuple[str, bytes]:
        """The same as bytes: for models that fit into memory several times."""
        text, path = await self.model_file(round)
        return text, await asyncio.to_thread(path.read_bytes)

    async def model(self, round: int | None = None) -> dict[str, NDArray[Any]]:
        """The newest model, or the one that a round made, as arrays."""
        _, path = await self.model_file(round)
        return {name: array.copy() for name, array in self._parsed(mapped(path)).items()}

    async def _model_cid(self, round: int | None) -> bytes:
        if round is None:
            return (await self.status()).model
        if round == 0:
            return self.rules.initial
        found = await self.round(round)
        if found is None or found.phase != Phase.CLOSED:
            raise BadInput("NO_MODEL", f"Round {round} of {self.name} has made no model.", "Name a closed round.")
        return found.model

    async def _file(self, cid: bytes, progress: Progress = quiet) -> Path:
        kept = self.network.kept
        path = kept.model_path(cid)
        if path.exists():
            return path
        if cid == zero_model_cid(self.rules.schema):
            form = model_form(self.rules.schema)
            kept.keep_zeros(path, form.header, form.size_bytes)
        else:
            await self.network.blobs.get(cid_text(cid), path, progress=progress)
        return path

    def _parsed(self, blob: memoryview) -> dict[str, NDArray[Any]]:
        """Arrays over the blob's own bytes."""
        try:
            return parse_model(self.rules.schema, blob)
        except Refused as refused:
            raise Unverified("BAD_MODEL", f"The certified model is no model of this job: {refused}.") from None

    # Membership

    async def join(
        self, accept: str | None = None, *, role: str = Role.TRAINER.value, dataset: str | None = None
    ) -> Receipt | None:
        """Join under the job's rules, as a trainer or as an evaluator; None if that has been done. With `accept`, the
        hash of the rules that were agreed on, joining is refused under any others. `dataset` is the own one that is
        trained on, by name or id: a job whose updates weigh by data sets wants it. Raises PolicyForbids for a job that
        this site does not admit."""
        if accept is not None and accept.lower() != self.rules_hash:
            raise RefusedByChain.of("WRONG_RULES", f"The rules of {self.name} hash to {self.rules_hash}.")
        await self.admit(role)
        if await (self.is_evaluator() if role == Role.EVALUATOR else self.joined()):
            return None
        named = bytes.fromhex((await self.network.datasets.find(dataset))[0]) if dataset is not None else b""
        body = JoinJob(self._id, bytes.fromhex(self.rules_hash), role, named)
        receipt = await self.network.send(body, allow=("ALREADY_JOINED",))
        return receipt if receipt.accepted else None

    async def admit(self, role: str = Role.TRAINER.value) -> Policy:
        """The site's policy as it is at this time; raises PolicyForbids if it does not admit the job."""
        policy = self.network.policy.read()
        creator = (await self.status()).creator if policy.creators is not None else None
        policy.check(self.rules, creator=creator, role=role)
        return policy

    async def leave(self, *, role: str = Role.TRAINER.value) -> Receipt:
        return await self.network.send(LeaveJob(self._id, role))

    async def pause(self) -> Receipt:
        """Let the open round end and open no other until the job is resumed; its creator and registrars may."""
        return await self.network.send(PauseJob(self._id))

    async def resume(self) -> Receipt:
        """Go on with a job that was paused, by hand or by rounds that failed."""
        return await self.network.send(ResumeJob(self._id))

    async def stop(self) -> Receipt:
        """End the job for everyone; its creator and registrars may."""
        return await self.network.send(StopJob(self._id))

    # What is asked of members

    def tasks(self) -> AsyncGenerator[AsyncTask, None]:
        """Each round that this account may still answer, until the job is over.

        Updates that an earlier run left in flight are sent again first, byte for byte. A round that was answered is
        skipped, so the loop can be started anew at any time. Nodes that do not answer are waited for, and so are the
        hours of the site's policy; a job that it does not admit any more raises PolicyForbids."""
        return self._asked(SubmitUpdate, self._task, Role.TRAINER)

    def evaluations(self) -> AsyncGenerator[AsyncEvaluation, None]:
        """Each model that this account is asked to measure and has not, until the job is over: as `tasks` for those
        who evaluate."""
        return self._asked(SubmitEvaluation, self._evaluation, Role.EVALUATOR)

    async def _asked(
        self, answered_by: type[object], find: Callable[[int], Awaitable[tuple[Job, A | None]]], role: Role
    ) -> AsyncGenerator[A, None]:
        """What `find` finds beyond the round that was offered last; it is told which one that is."""
        wakeup, policies = Wakeup(self.network.nodes, self.id), self.network.policy
        offered, shut_s = 0, 0.0
        try:
            while True:
                try:
                    policy, was_open = await self.admit(role), not shut_s
                    if not policy.holds_back_s(policies.now()):
                        await self._resume(answered_by)
                    seen, height = wakeup.seen(), self.network.reader.head
                    shut_s = policy.wait_s(policies.now())
                    job, asked = (await self.status(), None) if shut_s else await find(offered)
                    if asked is not None:
                        # To fetch a model takes its time.
                        shut_s = (await self.admit(role)).wait_s(policies.now())
                except Unreachable as error:
                    log.warning("%s: waiting for the network: %s", self.name, error)
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    continue
                if job.status in _OVER:
                    await asyncio.to_thread(self._forget_feedback)
                    return
                if shut_s:
                    if was_open:
                        log.warning("%s: the policy's hours begin at %s", self.name, policies.shown(shut_s))
                    await asyncio.sleep(min(shut_s, _LOOK_AGAIN_S))
                    continue
                if asked is None:
                    about_to_be_proven = wakeup.rumoured_height() > height
                    await wakeup.wait(seen, _SOON_S if about_to_be_proven else _LOOK_AGAIN_S)
                    continue
                offered = asked.round
                yield asked
        finally:
            await wakeup.close()

    async def standing(self) -> Standing:
        """Job, open round and own membership. Each is proven, and no older than the ones before."""
        job = await self.status()
        if job.round == 0:
            return Standing(job, None, await self.joined())
        current, joined = await asyncio.gather(self.round(job.round), self.joined())
        return Standing(job, current, joined)

    async def _task(self, offered: int) -> tuple[Job, AsyncTask | None]:
        standing = await self.standing()
        task = None if standing.job.status in _OVER else await self._task_of(standing, offered)
        return standing.job, task

    async def _task_of(self, standing: Standing, offered: int) -> AsyncTask | None:
        joined, current = standing.joined, standing.round
        if joined is None:
            raise RefusedByChain.of("NOT_JOINED", f"This account is not in the job {self.name}.")
        if current is None or joined.from_round > current.number:
            return None
        if current.phase == Phase.CHECK_IN and joined.checked_in < current.number:
            await self.network.send(CheckIn(self._id, current.number), allow=_CHECK_IN_OVER, patience_s=math.inf)
        if current.phase != Phase.COLLECTING or current.number <= offered:
            return None
        if not await self._is_asked(current, joined):
            return None
        path = await self._file(current.base)
        return AsyncTask(self, current, self._parsed(mapped(path)), self._own_arrays(path))

    async def _is_asked(self, current: Round, joined: Joined) -> bool:
        answered = await self.network.record(Answered, answered_key(self._id))
        if has_answered(answered, current.number, joined):
            return False
        return not is_listed(self.rules) or await self._is_candidate(current, joined)

    async def _is_candidate(self, current: Round, joined: Joined) -> bool:
        listed = await self.network.record(Candidates, candidates_key(self._id))
        return (
            listed is not None and listed.round == current.number and bool(read_seats(listed.seats) >> joined.seat & 1)
        )

    async def _evaluation(self, offered: int) -> tuple[Job, AsyncEvaluation | None]:
        job = await self.status()
        if job.status in _OVER:
            return job, None
        account = self.network.sender.account
        if not await self._lists(evaluators_key(self._id), account):
            raise RefusedByChain.of("NOT_JOINED", f"This account does not evaluate the job {self.name}.")
        asked = await self.evaluation(job.evaluation)
        if asked is None or asked.phase != EvaluationPhase.OPEN or asked.round <= offered:
            return job, None
        is_drawn, answer = await asyncio.gather(
            self._lists(evaluation_cohort_key(self._id), account),
            self.network.record(Answer, answer_key(self._id, account)),
        )
        if not is_drawn or answer is not None:
            return job, None
        return job, AsyncEvaluation(self, asked, self._own_arrays(await self._file(asked.model)))

    def _own_arrays(self, path: Path) -> dict[str, NDArray[Any]]:
        """To be changed by whoever is given them; the file stays as it is."""
        model = self._parsed(mapped(path, own=True))
        for array in model.values():
            array.flags.writeable = True
        return model

    async def _resume(self, answered_by: type[object]) -> None:
        mine = [each for each in self.network.pending() if self._is_mine(each, answered_by)]
        await asyncio.gather(*(self.network.sender.resume_one(each) for each in mine))

    async def settled(self) -> None:
        """Returns once no update of this account is in flight."""
        await self._resume(SubmitUpdate)

    def _is_mine(self, pending: Pending, answered_by: type[object]) -> bool:
        if pending.tx.sender != self.network.sender.account:
            return False
        _, body = read_body(pending.tx)
        return isinstance(body, answered_by) and getattr(body, "job", None) == self._id

    # Updates

    async def buffer_open(self) -> None:
        """Returns once a buffer takes updates, or the job is over."""
        while True:
            with suppress(Unreachable):
                standing = await self.standing()
                collecting = standing.round is not None and standing.round.phase == Phase.COLLECTING
                if collecting or standing.job.status in _OVER:
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def group_number(self, name: str | None) -> int:
        """Of a group of tensors, among those that the job names; None stands for all tensors, where it names none."""
        names = [each.name for each in self.rules.groups]
        if name is None and not names:
            return 0
        if name not in names:
            known = ", ".join(names) or "none"
            raise BadInput("UNKNOWN_GROUP", f"An update of this job names one of its groups: {known}.", "Give `group`.")
        return names.index(name)

    def update(
        self,
        round: Round,
        delta: Arrays,
        examples: int,
        metrics: Mapping[str, float],
        group: int = 0,
        feedback: bool = True,
    ) -> SubmitUpdate:
        """The body that answers this round with this change of the averaged tensors, or of a group of them. One that is
        too large to be carried is in the outbox from here on. With feedback, what a lossy encoding left out of earlier
        updates goes along; none of these may be in flight."""
        rules, number = self.rules, examples_of(examples)
        values = metric_values(rules.metrics, metrics)
        cid, payload = self._payload(group, round, delta, feedback)
        return SubmitUpdate(
            job=self._id,
            round=round.number,
            base=round.base,
            examples=number,
            metrics=values,
            group=group,
            cid=cid,
            payload=payload,
        )

    def _payload(self, group: int, round: Round, delta: Arrays, feedback: bool) -> tuple[bytes, bytes]:
        """CID and what the transaction carries: nothing if that is too much, which is then in the outbox."""
        form, kept = form_of(self.rules, group), self.network.kept
        header = form.header(Place(self._id, round.number, self.network.sender.account))
        try:
            if not feedback or self.rules.encoding not in FED_BACK:
                return self._written(form, header, delta)
            owed = Feedback(kept.feedback_directory(self._id, group))
            with owed.owing(form, self.rules.range_bits, round.number, delta) as owing:
                cid, payload = self._written(form, header, owing)
                owing.told(cid, payload or kept.blob_path(cid))
            return cid, payload
        except Refused as refused:
            raise RefusedByChain.of(refused.code, refused.sentence) from None
        except ValueError as error:
            raise BadInput("BAD_UPDATE", f"The update cannot be encoded: {error}.", "Check names and shapes.") from None

    def _written(self, form: UpdateForm, header: bytes, delta: Arrays) -> tuple[bytes, bytes]:
        """A large payload is never put together here: it would be in memory once more."""
        parts = chain((header,), encoded(form, delta))
        if len(header) + form.data_bytes > self.network.genesis.params.inline_bytes:
            return self.network.sender.keep_blob(parts), b""
        payload = b"".join(parts)
        return raw_cid(payload), payload

    def _forget_feedback(self) -> None:
        for group in range(groups_of(self.rules)):
            Feedback(self.network.kept.feedback_directory(self._id, group)).forget()
