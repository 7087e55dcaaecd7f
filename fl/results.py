"""Items: what validators attest and no account signs. Voters have checked the witnesses; here an item alone
is seen, and one that is stale or repeated is ignored with an event."""

from __future__ import annotations

from chain.block import Evidence, Item, ItemKind, Ready, item_digest
from chain.certificate import Result
from chain.cid import CidError, check_cid
from chain.codec import CodecError, decode
from fl.course import close_round, fail_round_and_go_on
from fl.errors import Refused
from fl.execution import Execution
from fl.records import Convicted, EventKind, Job, JobRules, JobStatus, Phase, ReadyMark, Round
from fl.rules import rule_of
from fl.state import convicted_key, job_key, ready_key, round_key, rules_key


def apply_item(execution: Execution, item: Item) -> None:
    try:
        match item.kind:
            case ItemKind.RESULT:
                _apply_result(execution, decode(Result, item.data, len(item.data)))
            case ItemKind.EVIDENCE:
                _apply_evidence(execution, decode(Evidence, item.data, len(item.data)))
            case ItemKind.READY:
                _apply_ready(execution, decode(Ready, item.data, len(item.data)))
            case _:
                raise Refused("UNKNOWN_KIND")
    except (Refused, CodecError) as error:
        code = error.code if isinstance(error, Refused) else "UNDECODABLE"
        execution.event(EventKind.ITEM_IGNORED, subject=item_digest(item), code=code, value=item.kind)


def _apply_result(execution: Execution, result: Result) -> None:
    state = execution.state
    job, rules = state.get(Job, job_key(result.job)), state.get(JobRules, rules_key(result.job))
    if job is None or rules is None:
        raise Refused("UNKNOWN_JOB")
    current = state.get(Round, round_key(result.job, result.round))
    if current is None or job.status != JobStatus.RUNNING or current.phase != Phase.AGGREGATING:
        raise Refused("STALE")
    if result.log_root != current.updates.root() or result.kernel_version != current.kernel_version:
        raise Refused("STALE")
    _check_form(result, rules)
    if result.ok:
        close_round(execution, result.job, job, rules, current, result)
    else:
        fail_round_and_go_on(execution, result.job, job, rules, current, result.code, result.record)


def _check_form(result: Result, rules: JobRules) -> None:
    """A rule with a memory leaves it with every model, and no other rule leaves one."""
    if bool(result.optimizer) != (result.ok and bool(rule_of(rules.rule).moments)):
        raise Refused("UNDECODABLE")
    named = [result.model] if result.ok else []
    named += [cid for cid in (result.optimizer, result.record) if cid]
    try:
        for cid in named:
            check_cid(cid)
    except CidError:
        raise Refused("UNDECODABLE") from None
    if result.ok == bool(result.code):
        raise Refused("UNDECODABLE")


def _apply_evidence(execution: Execution, evidence: Evidence) -> None:
    key = convicted_key(evidence.epoch, evidence.signer)
    if execution.state.get(Convicted, key) is not None:
        raise Refused("REPEATED")
    execution.state.put(key, Convicted(evidence.view, evidence.kind, execution.block.height))
    execution.event(
        EventKind.EVIDENCE, round=evidence.view, subject=key[-10:], code=evidence.kind, value=evidence.signer
    )


def _apply_ready(execution: Execution, ready: Ready) -> None:
    key = ready_key(ready.validator)
    known = execution.state.get(ReadyMark, key)
    if known is not None and known.height >= ready.height:
        raise Refused("REPEATED")
    execution.state.put(key, ReadyMark(ready.height, ready.root, execution.block.height))
    execution.event(EventKind.READY, subject=ready.validator, value=ready.height)
