"""Which blobs must stay because the state at some height names them: the roots from which a store is marked and swept.

There are no reference counts. A node asks for the roots of a state that is durable, adds what is named and not yet
executed (its pool, batches in flight, final blocks ahead of execution), and deletes whatever else is older than that
question. Two nodes with one policy keep the same blobs at the same state.

What it costs: one row for each job there has ever been and one of its newest evaluation, `models + update_rounds`
rounds of each at most, one round in `every`, and the entries of the rounds whose updates are kept. No round is looked
at for having been. An archive alone looks at all of them, each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chain.codec import decode
from fl.evaluators import UNDER_WAY
from fl.records import Dataset, Job, JobStatus, Phase, Round
from fl.rounds import entries_of
from fl.state import DATASETS, JOBS, MAX_VALUE_BYTES, Leaves, Read, Rows, evaluation_of, round_of

DAY_MS = 24 * 3_600_000
_ENDED_JOB = (JobStatus.FINISHED, JobStatus.STOPPED)
_ENDED_ROUND = (Phase.CLOSED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Policy:
    """Of one node. A job's first, newest and best models are kept under any, and the one that is being evaluated."""

    models: int = 3
    """The newest ended rounds of a job of which the model, what its rule kept beside it and the record are kept,
    whatever became of them: the round after can be computed again from these."""
    every: int = 0
    """Each round whose number is a multiple of this is kept as well; 0: none."""
    update_rounds: int = 2
    """The newest ended rounds of a job whose updates are kept. Those of an open round always are."""
    ended_job_ms: int = 7 * DAY_MS
    """How long the updates of a job that has ended are kept beyond its last round."""
    archive: bool = False
    """Everything of every round."""

    def __post_init__(self) -> None:
        if min(self.models, self.every, self.update_rounds, self.ended_job_ms) < 0:
            raise ValueError("what is kept cannot be less than nothing")


@dataclass(frozen=True, slots=True)
class _Progress:
    job: bytes
    record: Job
    newest: Round | None


def roots(state: Read, rows: Rows, leaves: Leaves, policy: Policy) -> Iterator[bytes]:
    """The CIDs, some of them more than once. An update that came inline is named too, though there is no such blob."""
    progress = [_progress(state, key[len(JOBS) :], row) for key, row in rows(JOBS)]
    # The state holds no time of its own. What the jobs last did is late at most, and then things stay for longer.
    now_ms = max((_latest_ms(each.newest) for each in progress), default=0)
    for each in progress:
        yield from _of_job(state, leaves, policy, each, now_ms)
    for _, row in rows(DATASETS):
        dataset = decode(Dataset, row, MAX_VALUE_BYTES)
        if dataset.stored and not dataset.withdrawn_height:
            yield dataset.cid


def _progress(state: Read, job: bytes, row: bytes) -> _Progress:
    record = decode(Job, row, MAX_VALUE_BYTES)
    return _Progress(job, record, round_of(state, job, record.round))


def _latest_ms(newest: Round | None) -> int:
    return 0 if newest is None else max(newest.opened_ms, newest.ended_ms)


def _of_job(state: Read, leaves: Leaves, policy: Policy, progress: _Progress, now_ms: int) -> Iterator[bytes]:
    job, newest = progress.record, progress.newest
    yield job.model
    if job.optimizer:
        yield job.optimizer
    if newest is None:
        return
    first = round_of(state, progress.job, 1)
    if first is not None:
        # The model that the job was created with: a round's base is the model before it.
        yield first.base
    evaluated = evaluation_of(state, progress.job, job.evaluation)
    if evaluated is not None and evaluated.phase in UNDER_WAY:
        yield evaluated.model
    kept, answered = _kept_rounds(job, newest, policy), _rounds_with_updates(job, newest, policy, now_ms)
    for number in sorted(kept | answered):
        found = newest if number == newest.number else round_of(state, progress.job, number)
        if found is None:
            continue
        if number in kept:
            yield from (cid for cid in (found.model, found.optimizer, found.record) if cid)
        if number in answered:
            yield from (entry.cid for entry in entries_of(leaves, progress.job, number, found.updates.size))


def _last_ended(newest: Round) -> int:
    return newest.number if newest.phase in _ENDED_ROUND else newest.number - 1


def _window(last: int, count: int) -> set[int]:
    return set(range(max(1, last - count + 1), last + 1))


def _kept_rounds(job: Job, newest: Round, policy: Policy) -> set[int]:
    """Those of which the model, if they made one, and the record are kept."""
    last = _last_ended(newest)
    kept = _window(last, last if policy.archive else policy.models)
    if policy.every:
        kept.update(range(policy.every, last + 1, policy.every))
    return kept | {job.model_round, job.best_round} - {0}


def _rounds_with_updates(job: Job, newest: Round, policy: Policy, now_ms: int) -> set[int]:
    last = _last_ended(newest)
    if policy.archive:
        return _window(newest.number, newest.number)
    if job.status in _ENDED_JOB and newest.ended_ms + policy.ended_job_ms < now_ms:
        return set()
    return _window(last, policy.update_rounds) | {newest.number} - {last}
