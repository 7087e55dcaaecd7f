"""What holds after every block, whatever was in it: totals against what a reader counts from the receipts alone, and
rows of the state against each other."""

from __future__ import annotations

from chain.codec import decode
from chain.log import Frontier
from fl.cohort import is_listed, read_seats
from fl.execution import OK
from fl.machine import wants_block_at
from fl.metrics import better
from fl.phases import ENDED, phases_of
from fl.records import (
    METRIC_MARKS,
    Answered,
    Candidates,
    Entry,
    EvaluationPhase,
    Evaluators,
    EventKind,
    JobRules,
    JobStatus,
    Joined,
    Kind,
    Member,
    Meta,
    Organisation,
    Phase,
    Receipt,
    Round,
    Seated,
)
from fl.rounds import entries_of
from fl.state import (
    EVENTS,
    META,
    RECEIPTS,
    answered_key,
    candidates_key,
    evaluation_of,
    evaluators_key,
    member_key,
    open_jobs,
    organisation_key,
    read_record,
    seated_key,
)
from tests.fl.builders import Ledger


def check_totals(chain: Ledger) -> None:
    state = chain.state
    _check_logs(chain)
    accepted: dict[tuple[bytes, int], list[Receipt]] = {}
    measured: dict[tuple[bytes, int], list[Receipt]] = {}
    seen: set[tuple[bytes, int]] = set()
    for receipt in chain.receipts:
        assert (receipt.sender, receipt.nonce) not in seen, "a nonce was executed twice"
        seen.add((receipt.sender, receipt.nonce))
        assert receipt.status not in ("FAULT", "EXPIRED", "NONCE_USED", "NONCE_FAR", "WRONG_KEY")
        if receipt.kind in (Kind.SUBMIT_UPDATE, Kind.SUBMIT_EVALUATION) and receipt.status == OK:
            answers = accepted if receipt.kind == Kind.SUBMIT_UPDATE else measured
            answers.setdefault((receipt.job, receipt.round), []).append(receipt)
    for key in state:
        if key.startswith(b"round/"):
            job, number = key[6:38], int.from_bytes(key[38:], "big")
            _check_round(chain, job, number, accepted.pop((job, number), []))
        elif key.startswith(b"evaluation/"):
            job, number = key[11:43], int.from_bytes(key[43:], "big")
            _check_evaluation(chain, job, number, measured.pop((job, number), []))
        elif key.startswith(b"job/"):
            _check_job(chain, key[4:])
    told = sum(event.kind == EventKind.UPDATE_REFUSED for event in chain.events)
    refused = [each.status for each in chain.receipts if each.kind == Kind.SUBMIT_UPDATE and each.status != OK]
    assert refused.count("NOT_JOINED") <= told <= len(refused)
    assert not accepted, "an update was accepted into no round"
    assert not measured, "an answer was accepted into no evaluation"
    due = wants_block_at(state.get)
    assert due is None or due >= 0
    listed = [each.job for each in open_jobs(state.get).jobs]
    assert listed == sorted(set(listed))


def _check_logs(chain: Ledger) -> None:
    meta = read_record(chain.state.get, Meta, META)
    assert meta is not None and meta.executed + meta.refused == len(chain.receipts)
    for name, count in ((RECEIPTS, len(chain.receipts)), (EVENTS, len(chain.events))):
        frontier = read_record(chain.state.get, Frontier, name)
        assert (frontier.size if frontier else 0) == count


def _check_round(chain: Ledger, job: bytes, number: int, accepted: list[Receipt]) -> None:
    current, rules = chain.round(job, number), chain.rules(job)
    assert current.phase in (*phases_of(rules), *ENDED)
    assert current.updates.size == len(accepted) <= min(rules.maximum, 2**17)
    assert len({receipt.sender for receipt in accepted}) == len(accepted), "a member answered twice"
    assert all(1 <= receipt.weight <= rules.cap for receipt in accepted)
    entries = list(entries_of(chain.leaves, job, number, current.updates.size))
    assert [entry.tx_id for entry in entries] == [receipt.tx_id for receipt in accepted]
    assert [entry.weight for entry in entries] == [receipt.weight for receipt in accepted]
    _check_weights(chain, rules, current, entries)
    if current.phase in (Phase.AGGREGATING, Phase.CLOSED):
        assert current.updates.size >= rules.minimum
    if current.phase < Phase.COLLECTING:
        assert not entries
    if current.phase not in ENDED:
        assert chain.job(job).status == JobStatus.RUNNING and chain.job(job).round == number
        _check_cohort(chain, job, rules, current)


def _check_weights(chain: Ledger, rules: JobRules, current: Round, entries: list[Entry]) -> None:
    groups, organisations = [0] * max(1, len(rules.groups)), dict[str, int]()
    for entry in entries:
        groups[entry.group] += entry.weight
        age = current.number - entry.round
        assert 0 <= age < max(1, len(rules.discounts))
        member = read_record(chain.state.get, Member, member_key(entry.member))
        assert member is not None
        name = member.organisation or entry.member.hex()
        organisations[name] = organisations.get(name, 0) + entry.weight
    assert list(current.weights) == groups
    if rules.organisation_cap:
        assert all(weight <= rules.organisation_cap for weight in organisations.values())


def _check_cohort(chain: Ledger, job: bytes, rules: JobRules, current: Round) -> None:
    listed = read_record(chain.state.get, Candidates, candidates_key(job))
    assert (listed is not None) == is_listed(rules)
    if current.phase <= Phase.COLLECTING:
        assert current.updates.size <= current.cohort
    if listed is None or current.phase > Phase.COLLECTING:
        return
    assert listed.round == current.number
    counted = current.checked_in if current.phase == Phase.CHECK_IN else current.cohort
    assert read_seats(listed.seats).bit_count() == counted


def _check_evaluation(chain: Ledger, job: bytes, number: int, accepted: list[Receipt]) -> None:
    found, rules, known = evaluation_of(chain.state.get, job, number), chain.rules(job), chain.job(job)
    assert found is not None and found.model == chain.round(job, number).model
    assert found.answers.size == len(accepted) == len({receipt.sender for receipt in accepted})
    if found.phase in (EvaluationPhase.DRAWING, EvaluationPhase.OPEN):
        assert known.evaluation == number and known.status not in (JobStatus.FINISHED, JobStatus.STOPPED)
        held = [key for key in chain.state if key.startswith(b"answer/" + job)]
        assert len(held) == len(accepted) < max(1, found.cohort)
    elif found.phase == EvaluationPhase.CLOSED:
        assert len(accepted) >= rules.evaluation.minimum and len(found.values) == 1
        value = found.values[0]
        assert value in METRIC_MARKS or value == known.best_value or better(rules.goal, known.best_value, value)
    else:
        assert found.code and not found.values


def _check_job(chain: Ledger, job: bytes) -> None:
    known, rules = chain.job(job), chain.rules(job)
    assert not known.pausing or known.status in (JobStatus.RUNNING, JobStatus.WAITING)
    _check_seats(chain, job)
    listed = read_record(chain.state.get, Evaluators, evaluators_key(job))
    assert known.evaluators == (len(listed.accounts) if listed else 0)
    rounds = [chain.round(job, number) for number in range(1, known.round + 1)]
    closed = [each for each in rounds if each.phase == Phase.CLOSED]
    assert known.completed == len(closed) <= rules.rounds
    assert known.model == (closed[-1].model if closed else rules.initial)
    opened = {each.job for each in open_jobs(chain.state.get).jobs}
    assert (job in opened) == (known.status not in (JobStatus.FINISHED, JobStatus.STOPPED))


def _check_seats(chain: Ledger, job: bytes) -> None:
    known, rules, prefix = chain.job(job), chain.rules(job), b"joined/" + job
    rows = {key[len(prefix) :]: value for key, value in chain.state.items() if key.startswith(prefix)}
    joined = {account: decode(Joined, row, len(row)) for account, row in rows.items()}
    seats = sum(1 << each.seat for each in joined.values())
    taken = read_record(chain.state.get, Seated, seated_key(job))
    assert known.members == len(joined) == seats.bit_count()
    assert seats == (read_seats(taken.seats) if taken is not None else 0)
    assert all(each.checked_in <= known.round for each in joined.values())
    answered = read_record(chain.state.get, Answered, answered_key(job))
    taken_from = [number for number in range(1, known.round + 1) if chain.round(job, number).updates.size]
    assert (answered.round if answered is not None else None) == (taken_from[-1] if taken_from else None)
    if answered is not None:
        assert read_seats(answered.seats).bit_count() == chain.round(job, answered.round).updates.size
    if not rules.organisation_cap or known.status in (JobStatus.FINISHED, JobStatus.STOPPED):
        return
    organisations: dict[str, int] = {}
    for account, each in joined.items():
        member = read_record(chain.state.get, Member, member_key(account))
        assert member is not None and not member.revoked
        if member.organisation:
            organisations[member.organisation] = organisations.get(member.organisation, 0) | 1 << each.seat
    prefix = organisation_key(job, "")
    for key in (key for key in chain.state if key.startswith(prefix)):
        found = read_record(chain.state.get, Organisation, key)
        assert found is not None
        assert read_seats(found.seats) == organisations.pop(key[len(prefix) :].decode(), 0)
    assert not organisations
