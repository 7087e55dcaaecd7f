"""Jobs: created by a member in that role, joined by trainers who accept the rules, stopped by the creator or a
registrar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from chain.codec import Digest, Length
from chain.genesis import Params
from chain.hashing import DIGEST_BYTES, Domain, digest
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.blobs import Demand
from fl.cohort import join, leave
from fl.course import fail_round
from fl.errors import Refused
from fl.evaluation import stop_evaluation
from fl.evaluators import join_evaluators, leave_evaluators
from fl.execution import Call, Effect, Execution, NewModel
from fl.jobrules import check_initial_model, check_rules, kept_values, parameters_of, rules_hash, zero_model_cid
from fl.members import is_registrar, member_in_role
from fl.phases import ENDED
from fl.records import (
    MAX_OPEN_JOBS,
    NEVER,
    Dataset,
    EventKind,
    Job,
    JobRules,
    JobStatus,
    Joined,
    MaybeDigest,
    Named,
    OpenJob,
    Role,
    Round,
    Word,
)
from fl.state import RulesOf, State, dataset_key, job_key, job_name_key, joined_key, round_key, rules_key
from fl.tensors.grid import MAX_UPDATES
from fl.weights import DATASET

_ENDED = (JobStatus.FINISHED, JobStatus.STOPPED)
_PLACES = (Role.TRAINER, Role.EVALUATOR)
"""In which a member takes part in a job."""


@dataclass(frozen=True, slots=True)
class CreateJob:
    """`model` is the initial model inline. Empty, it is the model of zeros if the rules name that one's CID, and else
    the blob that they name."""

    rules: JobRules
    model: Annotated[bytes, Length(0, MAX_TRANSACTION_BYTES)]


@dataclass(frozen=True, slots=True)
class StopJob:
    job: Digest


@dataclass(frozen=True, slots=True)
class PauseJob:
    job: Digest


@dataclass(frozen=True, slots=True)
class ResumeJob:
    job: Digest


@dataclass(frozen=True, slots=True)
class JoinJob:
    """As a trainer or as an evaluator; a member may be both. A trainer may name the data set that it trains on, and
    must where that is what updates weigh by."""

    job: Digest
    rules_hash: Digest
    role: Word = Role.TRAINER.value
    dataset: MaybeDigest = b""


@dataclass(frozen=True, slots=True)
class LeaveJob:
    job: Digest
    role: Word = Role.TRAINER.value


def job_id(tx_id: bytes) -> bytes:
    """The id of the job that this transaction creates."""
    return digest(Domain.JOB, tx_id)


def check_creation(body: CreateJob, tx: Transaction, params: Params, rules_of: RulesOf) -> Demand | None:
    check_rules(body.rules, params)
    return check_initial_model(body.rules, body.model, params, tx.sender)


def check_joining(body: JoinJob, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    if _place(body.role) != Role.TRAINER and body.dataset:
        raise Refused("BAD_DATASET", "Only trainers join with a data set.")
    if len(body.dataset) not in (0, DIGEST_BYTES):
        raise Refused("BAD_DATASET", "A data set is named by its id.")


def check_leaving(body: LeaveJob, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    _place(body.role)


def _place(role: str) -> Role:
    if role not in _PLACES:
        raise Refused("BAD_ROLES", f"One joins a job as {' or '.join(_PLACES)}, not as {role!r}.")
    return Role(role)


def create_job(execution: Execution, call: Call, body: CreateJob) -> Effect:
    state, rules = execution.state, body.rules
    member_in_role(state, call.sender, Role.CREATOR)
    # What costs least comes first.
    opened = execution.open_jobs()
    if len(opened) == MAX_OPEN_JOBS:
        raise Refused("TOO_MANY_JOBS")
    named = state.get(Named, job_name_key(rules.name))
    if named is not None and any(each.job == named.holder for each in opened):
        raise Refused("NAME_TAKEN")
    # Unlike a tensor, rules become state that every later block relies on.
    check_rules(rules, execution.block.params)
    kept = kept_values(rules.schema)
    if sum(each.parameters for each in opened) + kept > execution.block.params.open_parameters:
        raise Refused("TOO_MANY_JOBS")
    job = job_id(call.tx_id)
    state.put(rules_key(job), rules)
    state.put(job_name_key(rules.name), Named(job))
    state.put(job_key(job), _created(execution, call, rules, parameters_of(rules.schema)))
    execution.set_open_job(OpenJob(job, NEVER, kept))
    execution.count(jobs=1)
    zeros = not body.model and rules.initial == zero_model_cid(rules.schema)
    execution.models.append(NewModel(rules.initial, body.model, rules.schema if zeros else None))
    execution.event(EventKind.JOB_CREATED, job, subject=call.sender)
    return Effect(job=job)


def stop_job(execution: Execution, call: Call, body: StopJob) -> Effect:
    job = _in_charge(execution.state, call.sender, body.job)
    key = round_key(body.job, job.round)
    current = execution.state.get(Round, key)
    if current is not None and current.phase not in ENDED:
        fail_round(execution, body.job, current, "STOPPED")
    stop_evaluation(execution, body.job, job)
    execution.state.put(job_key(body.job), replace(job, status=JobStatus.STOPPED, opens_ms=NEVER, pausing=False))
    execution.close_job(body.job)
    execution.event(EventKind.JOB_STOPPED, body.job, job.round, subject=call.sender)
    return Effect(job=body.job, round=job.round)


def pause_job(execution: Execution, call: Call, body: PauseJob) -> Effect:
    """The round that is open goes on to its end."""
    job = _in_charge(execution.state, call.sender, body.job)
    if job.pausing or job.status == JobStatus.PAUSED:
        raise Refused("JOB_PAUSED")
    execution.state.put(job_key(body.job), replace(job, pausing=True))
    execution.touched.add(body.job)
    execution.event(EventKind.JOB_PAUSING, body.job, job.round, subject=call.sender)
    return Effect(job=body.job, round=job.round)


def resume_job(execution: Execution, call: Call, body: ResumeJob) -> Effect:
    """A job that was to be paused after its round goes on as well."""
    job = _in_charge(execution.state, call.sender, body.job)
    if job.status != JobStatus.PAUSED and not job.pausing:
        raise Refused("JOB_NOT_PAUSED")
    status = JobStatus.WAITING if job.status == JobStatus.PAUSED else job.status
    execution.state.put(job_key(body.job), replace(job, status=status, failed_in_a_row=0, pausing=False))
    execution.touched.add(body.job)
    execution.event(EventKind.JOB_RESUMED, body.job, job.round, subject=call.sender)
    return Effect(job=body.job, round=job.round)


def join_job(execution: Execution, call: Call, body: JoinJob) -> Effect:
    state, role = execution.state, _place(body.role)
    member_in_role(state, call.sender, role)
    job = _open_job(state, body.job)
    if body.rules_hash != job.rules_hash:
        raise Refused("WRONG_RULES")
    if role == Role.EVALUATOR:
        return _join_evaluators(execution, call, body.job, job)
    if state.get(Joined, joined_key(body.job, call.sender)) is not None:
        raise Refused("ALREADY_JOINED")
    if job.members == MAX_UPDATES:
        raise Refused("JOB_FULL")
    rules = state.get(JobRules, rules_key(body.job))
    by_dataset = rules is not None and rules.weights == DATASET
    examples = _declared_examples(state, call.sender, body.dataset) if body.dataset or by_dataset else 0
    if by_dataset and not examples:
        raise Refused("NO_WEIGHT", "Updates weigh by their member's data set, and this one says that it is empty.")
    join(execution, body.job, job, call.sender, body.dataset, examples)
    return Effect(job=body.job, round=job.round + 1)


def _declared_examples(state: State, account: bytes, dataset: bytes) -> int:
    known = state.get(Dataset, dataset_key(dataset))
    if known is None:
        raise Refused("UNKNOWN_DATASET", "" if dataset else "One joins this job with a data set: name yours.")
    if known.owner != account:
        raise Refused("UNAUTHORISED", "A member joins with a data set of its own.")
    if known.withdrawn_height:
        raise Refused("WITHDRAWN")
    return known.examples


def _join_evaluators(execution: Execution, call: Call, job_id: bytes, job: Job) -> Effect:
    rules = execution.state.get(JobRules, rules_key(job_id))
    if rules is None or not rules.evaluation.every:
        raise Refused("NO_EVALUATION")
    join_evaluators(execution, job_id, job, call.sender)
    return Effect(job=job_id)


def leave_job(execution: Execution, call: Call, body: LeaveJob) -> Effect:
    state, role = execution.state, _place(body.role)
    job = _open_job(state, body.job)
    if role == Role.EVALUATOR:
        leave_evaluators(execution, body.job, job, call.sender)
        return Effect(job=body.job)
    joined = state.get(Joined, joined_key(body.job, call.sender))
    if joined is None:
        raise Refused("NOT_JOINED")
    leave(execution, body.job, job, call.sender, joined)
    return Effect(job=body.job, round=job.round)


def _created(execution: Execution, call: Call, rules: JobRules, parameters: int) -> Job:
    return Job(
        name=rules.name,
        creator=call.sender,
        rules_hash=rules_hash(rules),
        created_height=execution.block.height,
        status=JobStatus.WAITING,
        members=0,
        opens_ms=NEVER,
        round=0,
        completed=0,
        failed_in_a_row=0,
        model=rules.initial,
        model_round=0,
        optimizer=b"",
        parameters=parameters,
    )


def _open_job(state: State, job: bytes) -> Job:
    known = state.get(Job, job_key(job))
    if known is None:
        raise Refused("UNKNOWN_JOB")
    if known.status in _ENDED:
        raise Refused("JOB_CLOSED")
    return known


def _in_charge(state: State, account: bytes, job: bytes) -> Job:
    """The open job, if this account may stop it and set it going."""
    known = _open_job(state, job)
    if not is_registrar(state, account):
        member_in_role(state, account, Role.CREATOR)
        if account != known.creator:
            raise Refused("UNAUTHORISED", "Only a job's creator or a registrar may do this.")
    return known
