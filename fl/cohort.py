"""Who is in a job. A round's cohort is everyone who had joined when it opened, less those who left since
without having answered."""

from __future__ import annotations

from dataclasses import replace

from fl.execution import Execution
from fl.records import EventKind, Job, Joined, Phase, Round
from fl.state import job_key, joined_key, round_key


def join(execution: Execution, job_id: bytes, job: Job, account: bytes) -> None:
    """Into the cohorts of the rounds that open from here on."""
    state = execution.state
    state.put(joined_key(job_id, account), Joined(from_round=job.round + 1, answered=0))
    state.put(job_key(job_id), replace(job, members=job.members + 1))
    execution.touched.add(job_id)
    execution.event(EventKind.JOB_JOINED, job_id, subject=account)


def leave(execution: Execution, job_id: bytes, job: Job, account: bytes, joined: Joined) -> None:
    """An update given before leaving still counts."""
    state = execution.state
    state.delete(joined_key(job_id, account), Joined)
    state.put(job_key(job_id), replace(job, members=job.members - 1))
    key = round_key(job_id, job.round)
    current = state.get(Round, key)
    in_cohort = joined.from_round <= job.round and joined.answered < job.round
    if current is not None and current.phase == Phase.COLLECTING and in_cohort:
        state.put(key, replace(current, cohort=current.cohort - 1))
    execution.touched.add(job_id)
    execution.event(EventKind.JOB_LEFT, job_id, subject=account)
