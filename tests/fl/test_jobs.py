"""Jobs: what may be created, who joins, how rounds follow one another, when a job ends."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from chain.cid import LEAF_BYTES, raw_cid
from chain.genesis import Params
from chain.unixfs import cid_of
from fl.blobs import BlobClaim, BlobKind, Demand
from fl.errors import Refused
from fl.execution import NewModel
from fl.jobrules import check_rules, config_at, grid_of, rules_hash, zero_model, zero_model_cid
from fl.jobs import CreateJob, JoinJob, LeaveJob, PauseJob, ResumeJob, StopJob
from fl.machine import execute_block, wants_block_at
from fl.records import MAX_OPEN_JOBS, ConfigEntry, EventKind, JobStatus, Phase
from fl.state import job_name_key, open_jobs, rules_of
from fl.tensors.encodings import ENCODINGS
from fl.tensors.layout import AVERAGED, FROZEN, Schema, TensorSpec
from fl.tensors.model import build_model
from tests.fl.builders import (
    SCHEMA,
    Actor,
    Ledger,
    Running,
    created_job,
    ledger,
    make_rules,
    result_item,
    running_job,
)


def trainers(chain: Ledger, count: int) -> list[Actor]:
    return [chain.actor(f"trainer-{index:03}") for index in range(count)]


def join(chain: Ledger, job: bytes, *people: Actor, **block: object) -> None:
    accepted = rules_hash(chain.rules(job))
    chain.block(*(each.sign(JoinJob(job, accepted)) for each in people), **block)


def test_models_are_bounded_by_the_chains_parameters_and_not_by_a_transaction() -> None:
    schema = Schema((TensorSpec("w", "F32", (2**27,), "averaged"),))
    for encoding in ENCODINGS.keys() - {"ring32"}:
        check_rules(make_rules(schema=schema, encoding=encoding), Params())


def test_a_model_is_no_larger_than_a_blob_can_be_whatever_the_chain_allows() -> None:
    params = Params(job_parameters=2**40, open_parameters=2**40)
    frozen = TensorSpec("table", "F64", (2**20, 2**13), "frozen")
    schema = Schema((TensorSpec("w", "F32", (1,), "averaged"), frozen))
    with pytest.raises(Refused, match="OVERSIZE"):
        check_rules(make_rules(schema=schema, initial=bytes(36)), params)


def test_the_widest_allowed_rules_have_sums_that_64_bits_hold() -> None:
    grid = grid_of(make_rules(weights="examples", cap=2**20, range_bits=24, maximum=2**17))
    assert grid.weighted_bits >= 1
    assert 2**grid.precision_bits * 2**17 <= 2**62


def test_an_inline_model_and_the_zero_model_are_handed_to_the_node_by_their_cids() -> None:
    chain = ledger()
    creator = chain.actor("creator")
    zeros = created_job(chain, creator, make_rules(name="zeros"))
    model = build_model(SCHEMA, {"weight": np.ones((3, 2)), "bias": np.arange(3.0)})
    ones = created_job(chain, creator, make_rules(name="ones", initial=raw_cid(model)), model)
    assert chain.models[chain.job(zeros).model] == zero_model(SCHEMA)
    assert chain.models[chain.job(ones).model] == model


def test_an_initial_model_under_another_cid_is_refused_by_its_bytes() -> None:
    chain = ledger()
    model = build_model(SCHEMA, {"weight": np.ones((3, 2)), "bias": np.arange(3.0)})
    with pytest.raises(Refused, match="BAD_CID"):
        chain.check(chain.actor("creator").sign(CreateJob(make_rules(), model)))


def test_the_zero_model_is_known_by_its_cid_at_any_size() -> None:
    for parameters in (1, 1000, LEAF_BYTES // 4 - 32, LEAF_BYTES // 4, 3 * LEAF_BYTES // 4 + 5):
        frozen = TensorSpec("steps", "I64", (), "frozen")
        schema = Schema((TensorSpec("w", "F32", (parameters,), "averaged"), frozen))
        assert zero_model_cid(schema) == cid_of(zero_model(schema))


def test_a_model_of_zeros_needs_no_blob_however_large_it_is() -> None:
    chain = ledger()
    schema = Schema((TensorSpec("w", "F32", (2**27,), "averaged"),))
    data = chain.actor("creator").sign(CreateJob(make_rules(schema=schema), b""))
    assert chain.check(data).demand is None
    tracemalloc.start()
    outcome = execute_block(chain.state.get, chain.input(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.models == (NewModel(zero_model_cid(schema), b"", schema),)
    assert peak < 4 * LEAF_BYTES


def test_an_initial_model_that_neither_comes_along_nor_is_zero_is_demanded_as_a_blob() -> None:
    chain = ledger()
    creator = chain.actor("creator")
    for parameters in (6, 400_000):
        schema = Schema((TensorSpec("w", "F32", (parameters,), "averaged"),))
        model = build_model(schema, {"w": np.ones(parameters)})
        rules = make_rules(name=f"of-{parameters}", schema=schema, initial=cid_of(model))
        data = creator.sign(CreateJob(rules, b""))
        claim = BlobClaim(rules.initial, len(model), BlobKind.MODEL, creator.account, b"", 0, 0)
        assert chain.check(data).demand == Demand(claim, rules)
        assert chain.block(data).models == (NewModel(rules.initial, b"", None),)


def test_rules_are_checked_again_before_they_become_state() -> None:
    chain = ledger()
    assert chain.status_of(chain.actor("creator").sign(CreateJob(make_rules(maximum=2**18), b""))) == "BAD_RULES"


def test_the_rules_hash_covers_every_rule() -> None:
    rules = make_rules()
    changed = [
        replace(rules, deadline_ms=rules.deadline_ms + 1),
        replace(rules, name="other"),
        replace(rules, config=(ConfigEntry("lr", 1, "decimal", "0.1"),)),
        replace(rules, app_digest=bytes(32)),
    ]
    assert len({rules_hash(each) for each in (rules, *changed)}) == 5


def test_config_is_scheduled_by_round() -> None:
    entries = (ConfigEntry("lr", 1, "decimal", "0.1"), ConfigEntry("lr", 5, "decimal", "0.01"))
    rules = make_rules(config=entries)
    check_rules(rules, Params())
    assert [config_at(rules, round)["lr"].value for round in (1, 4, 5, 9)] == ["0.1", "0.1", "0.01", "0.01"]


def test_the_rules_of_a_job_are_the_same_bytes_for_ever() -> None:
    running = running_job()
    before = rules_of(running.ledger.state.get, running.job)
    running.finish_round()
    assert rules_of(running.ledger.state.get, running.job) == before


def test_the_first_round_waits_for_the_target() -> None:
    chain = ledger()
    job = created_job(chain, chain.actor("creator"), make_rules(target=4, minimum=2))
    people = trainers(chain, 4)
    join(chain, job, *people[:3])
    assert chain.job(job).status == JobStatus.WAITING
    join(chain, job, people[3])
    assert chain.job(job).status == JobStatus.RUNNING
    assert chain.round(job).cohort == 4


def test_the_first_round_opens_with_the_minimum_after_the_grace() -> None:
    chain = ledger()
    job = created_job(chain, chain.actor("creator"), make_rules(target=4, minimum=2, grace_ms=2_000))
    join(chain, job, *trainers(chain, 2))
    opens_ms = chain.time_ms + 2_000
    assert open_jobs(chain.state.get).jobs[0].due_ms == opens_ms
    chain.block(after_ms=1_999)
    assert chain.job(job).round == 0
    chain.block(after_ms=1)
    assert chain.round(job).cohort == 2


def test_all_who_join_in_one_block_are_in_the_cohort_that_opens_with_it() -> None:
    chain = ledger(trainers=6)
    job = created_job(chain, chain.actor("creator"), make_rules(target=4))
    join(chain, job, *trainers(chain, 6))
    assert chain.round(job).cohort == 6


def test_who_joins_during_a_round_is_in_the_next_cohort() -> None:
    chain = ledger(trainers=5)
    job = created_job(chain, chain.actor("creator"), make_rules())
    people = trainers(chain, 5)
    join(chain, job, *people[:4])
    join(chain, job, people[4])
    running = Running(chain, job, chain.actor("creator"), people[:4])
    assert chain.round(job).cohort == 4
    assert chain.status_of(running.update(people[4])) == "NOT_JOINED"
    running.finish_round()
    assert chain.round(job).cohort == 5
    assert chain.status_of(running.update(people[4])) == "ok"


def test_a_job_with_fewer_members_than_its_minimum_waits_for_more() -> None:
    running = running_job(minimum=4)
    chain = running.ledger
    task = running.freeze()
    chain.block(running.trainers[0].sign(LeaveJob(running.job)))
    chain.block(items=[result_item(task)])
    assert chain.job(running.job).status == JobStatus.WAITING
    join(chain, running.job, running.trainers[0])
    assert chain.round(running.job).number == 2


def test_later_rounds_open_at_once_with_whoever_is_there() -> None:
    running = running_job(target=4, minimum=2)
    task = running.freeze()
    running.ledger.block(*(each.sign(LeaveJob(running.job)) for each in running.trainers[:2]))
    running.ledger.block(items=[result_item(task)])
    assert (running.round.number, running.round.cohort) == (2, 2)


def test_a_job_is_finished_after_its_rounds() -> None:
    running = running_job(rounds=2)
    running.finish_round()
    assert running.ledger.job(running.job).status == JobStatus.RUNNING
    model = running.finish_round()
    job = running.ledger.job(running.job)
    assert (job.status, job.completed, job.model, job.model_round) == (JobStatus.FINISHED, 2, model, 2)
    assert open_jobs(running.ledger.state.get).jobs == ()
    assert running.ledger.events[-1].kind == EventKind.JOB_FINISHED
    assert running.ledger.status_of(running.update(running.trainers[0])) == "JOB_CLOSED"


def failed_round(running: Running) -> None:
    task = running.freeze()
    running.ledger.block(items=[result_item(task, code="MODEL_RANGE")])


def test_a_failed_round_does_not_count_and_a_good_one_forgives_it() -> None:
    running = running_job(rounds=2, max_failed=2)
    failed_round(running)
    running.finish_round()
    failed_round(running)
    job = running.ledger.job(running.job)
    assert (job.status, job.completed, job.failed_in_a_row, job.round) == (JobStatus.RUNNING, 1, 1, 4)


def test_max_failed_in_a_row_pauses_the_job_until_its_creator_resumes_it() -> None:
    running = running_job(max_failed=2)
    failed_round(running)
    failed_round(running)
    chain = running.ledger
    assert chain.job(running.job).status == JobStatus.PAUSED
    chain.block(after_ms=10**9)
    assert chain.job(running.job).round == 2
    assert chain.status_of(running.creator.sign(ResumeJob(running.job), valid_until_ms=chain.time_ms + 1_000)) == "ok"
    job = chain.job(running.job)
    assert (job.status, job.round, job.failed_in_a_row) == (JobStatus.RUNNING, 3, 0)


def test_a_job_that_is_to_be_paused_ends_its_round_first() -> None:
    running = running_job()
    chain = running.ledger
    assert chain.status_of(running.creator.sign(PauseJob(running.job))) == "ok"
    assert (chain.job(running.job).status, chain.job(running.job).pausing) == (JobStatus.RUNNING, True)
    running.finish_round()
    job = chain.job(running.job)
    assert (job.status, job.pausing, job.round, job.completed) == (JobStatus.PAUSED, False, 1, 1)
    chain.block(after_ms=10**6)
    assert chain.job(running.job).round == 1 and wants_block_at(chain.state.get) is None
    assert chain.status_of(running.update(running.trainers[0])) == "DUPLICATE"
    assert chain.status_of(chain.actor("registrar").sign(ResumeJob(running.job))) == "ok"
    assert (chain.job(running.job).status, running.round.number) == (JobStatus.RUNNING, 2)


def test_a_job_that_waits_for_members_is_paused_at_once() -> None:
    chain = ledger()
    creator = chain.actor("creator")
    job = created_job(chain, creator, make_rules())
    assert chain.status_of(creator.sign(PauseJob(job))) == "ok"
    join(chain, job, *trainers(chain, 4))
    assert (chain.job(job).status, chain.job(job).round) == (JobStatus.PAUSED, 0)
    assert chain.status_of(creator.sign(ResumeJob(job))) == "ok"
    assert (chain.job(job).status, chain.round(job).cohort) == (JobStatus.RUNNING, 4)


def test_a_round_that_fails_pauses_a_job_that_is_to_be_paused_and_a_last_one_finishes_it() -> None:
    running = running_job(rounds=1)
    running.ledger.block(running.creator.sign(PauseJob(running.job)))
    failed_round(running)
    assert running.ledger.job(running.job).status == JobStatus.PAUSED
    running.ledger.block(running.creator.sign(ResumeJob(running.job)))
    running.ledger.block(running.creator.sign(PauseJob(running.job)))
    running.finish_round()
    assert running.ledger.job(running.job).status == JobStatus.FINISHED


def test_a_pause_is_asked_once_by_those_in_charge_and_can_be_taken_back() -> None:
    running = running_job()
    chain = running.ledger
    assert chain.status_of(running.trainers[0].sign(PauseJob(running.job))) == "UNAUTHORISED"
    assert chain.status_of(chain.actor("registrar").sign(PauseJob(running.job))) == "ok"
    assert chain.status_of(running.creator.sign(PauseJob(running.job))) == "JOB_PAUSED"
    assert chain.status_of(running.creator.sign(ResumeJob(running.job))) == "ok"
    assert chain.status_of(running.creator.sign(ResumeJob(running.job))) == "JOB_NOT_PAUSED"
    running.finish_round()
    assert running.round.number == 2


def test_stopping_a_job_fails_its_round_and_frees_its_place() -> None:
    running = running_job()
    task = running.freeze()
    chain = running.ledger
    assert chain.status_of(running.creator.sign(StopJob(running.job))) == "ok"
    assert (running.round.phase, running.round.code) == (Phase.FAILED, "STOPPED")
    assert open_jobs(chain.state.get).jobs == ()
    chain.block(items=[result_item(task)])
    assert chain.events[-1].code == "STALE"
    assert chain.job(running.job).completed == 0


def test_only_the_creator_and_registrars_stop_a_job() -> None:
    running = running_job()
    chain = running.ledger
    assert chain.status_of(running.trainers[0].sign(StopJob(running.job))) == "UNAUTHORISED"
    assert chain.status_of(chain.actor("registrar").sign(StopJob(running.job))) == "ok"
    assert chain.status_of(running.creator.sign(StopJob(running.job))) == "JOB_CLOSED"


def test_the_name_of_an_ended_job_is_free_again() -> None:
    running = running_job()
    chain = running.ledger
    assert chain.status_of(running.creator.sign(CreateJob(make_rules(), b""))) == "NAME_TAKEN"
    chain.block(running.creator.sign(StopJob(running.job)))
    second = created_job(chain, running.creator, make_rules())
    assert chain.state[job_name_key("digits")].endswith(second)


def test_the_parameters_of_all_open_jobs_together_are_bounded() -> None:
    chain = ledger(params=Params(job_parameters=9, open_parameters=18))
    creator = chain.actor("creator")
    for name in ("one", "two"):
        created_job(chain, creator, make_rules(name=name))
    assert chain.status_of(creator.sign(CreateJob(make_rules(name="three"), b""))) == "TOO_MANY_JOBS"


def test_frozen_tensors_count_for_what_open_jobs_may_have_together() -> None:
    chain = ledger(params=Params(job_parameters=9, open_parameters=17))
    creator = chain.actor("creator")
    schema = Schema((TensorSpec("head", "F32", (1,), AVERAGED), TensorSpec("trunk", "F64", (8,), FROZEN)))
    job = created_job(chain, creator, make_rules(name="one", schema=schema))
    assert chain.job(job).parameters == 1
    assert chain.status_of(creator.sign(CreateJob(make_rules(name="two", schema=schema), b""))) == "TOO_MANY_JOBS"


def test_the_list_of_open_jobs_is_bounded() -> None:
    chain = ledger()
    creator = chain.actor("creator")
    chain.block(*(creator.sign(CreateJob(make_rules(name=f"j{index}"), b"")) for index in range(MAX_OPEN_JOBS + 1)))
    assert [receipt.status for receipt in chain.receipts[-2:]] == ["ok", "TOO_MANY_JOBS"]
    assert len(open_jobs(chain.state.get).jobs) == MAX_OPEN_JOBS
