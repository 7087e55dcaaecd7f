"""The checks of `quorate preflight` that are about one job: its rules, its code, the site's policy, and joining it."""

from __future__ import annotations

import string
from dataclasses import replace

from chain.genesis import Genesis
from fl.client.apps import BUILT_IN
from fl.client.errors import RefusedByChain
from fl.client.feedback import FED_BACK
from fl.client.reader import Reader
from fl.client.site.appsource import source_of
from fl.client.site.findings import ROOM_BYTES, Findings, Given, check_room
from fl.client.site.joining import answer_to_joining
from fl.client.site.policy import Policy
from fl.jobrules import rules_hash
from fl.jobs import JoinJob
from fl.members import is_name
from fl.records import Evaluators, Job, JobRules, JobStatus, Joined, Named, Role
from fl.state import dataset_name_key, evaluators_key, job_key, job_name_key, joined_key, rules_key
from fl.tensors.encodings import Place
from fl.tensors.model import model_form
from fl.updates import form_of

_MODELS_KEPT = 4
"""Of those that were needed last."""


async def check_job(
    found: Findings, given: Given, reader: Reader, genesis: Genesis, account: bytes | None, policy: Policy | None
) -> None:
    identity, rules, job = await _job(given.job or "", reader)
    _status(found, rules, job)
    _agreement(found, given, rules)
    _app(found, given, rules)
    _disk(found, given, rules)
    if policy is not None:
        _rulings(found, given, policy, rules, job)
    if account is not None:
        await _joining(found, given, reader, genesis, account, identity)


async def _job(name: str, reader: Reader) -> tuple[bytes, JobRules, Job]:
    if _is_id(name):
        identity = bytes.fromhex(name)
    else:
        named = await reader.record(Named, job_name_key(name)) if is_name(name) else None
        identity = named.holder if named is not None else b""
    rules = await reader.record(JobRules, rules_key(identity)) if identity else None
    job = await reader.record(Job, job_key(identity)) if identity else None
    if rules is None or job is None:
        raise RefusedByChain("UNKNOWN_JOB", f"There is no job {name!r}.", "quorate job list tells which there are.")
    return identity, rules, job


def _is_id(text: str) -> bool:
    return len(text) == 64 and not set(text) - set(string.hexdigits)


def _status(found: Findings, rules: JobRules, job: Job) -> None:
    status = JobStatus(job.status)
    text = f"{rules.name}: {status.name.lower()}, round {job.round} of {rules.rounds}, {job.members} members"
    if status in (JobStatus.FINISHED, JobStatus.STOPPED):
        found.fail("job", text, "It is over: there is nothing to train.")
    elif status == JobStatus.PAUSED:
        found.warn("job", text, "Its creator or a registrar has to resume it; the loop waits until then.")
    else:
        found.ok("job", text)


def _agreement(found: Findings, given: Given, rules: JobRules) -> None:
    accepted = rules_hash(rules).hex()
    if given.accept is None:
        found.ok("rules", f"they hash to {accepted}: agree on that with the others, and join with --accept")
    elif given.accept.lower() != accepted:
        found.fail(
            "rules",
            f"they hash to {accepted}, and {given.accept.lower()} was agreed on",
            "Ask the job's creator: these are other rules.",
        )
    else:
        found.ok("rules", f"they hash to {accepted}, as agreed on")


def _app(found: Findings, given: Given, rules: JobRules) -> None:
    name = rules.app
    if not name:
        found.ok("app", "the job names none: train with code of your own")
        return
    if name in BUILT_IN:
        found.ok("app", f"{name} comes with quorate")
        return
    source = source_of(name, given.beside)
    if source is None:
        found.fail("app", f"the code of {name} is not here", "Get it from the job's creator, and run this beside it.")
        return
    if source.fault:
        found.fail("app", f"{source.file}: {source.fault}", "Get it from the job's creator.")
        return
    if rules.app_digest and source.digest != rules.app_digest:
        found.fail(
            "app",
            f"{source.file} hashes to {source.digest.hex()}, and the job is for {rules.app_digest.hex()}",
            "Train with the code that the members agreed on.",
        )
    elif not rules.app_digest:
        found.warn("app", f"{source.file}; the job names no digest of it", "Agree on the code by other means.")
    else:
        found.ok("app", f"{source.file} is the code that the job is for")
    if source.lacking:
        found.fail(
            "frameworks",
            f"{name} imports {', '.join(source.lacking)}, which {'is' if len(source.lacking) == 1 else 'are'} not here",
            f"Install what is missing: pip install {' '.join(source.lacking)}",
        )
    else:
        found.ok("frameworks", f"what {name} imports is installed")


def room_of(rules: JobRules) -> int:
    """What a trainer of this job has on disk at a time: models, an update on its way, what encodings have left out."""
    model = model_form(rules.schema).size_bytes
    update = form_of(replace(rules, groups=()), 0).size_bytes(Place(bytes(32), 2**64 - 1, bytes(32)))
    return ROOM_BYTES + _MODELS_KEPT * model + 2 * update + (2 * model if rules.encoding in FED_BACK else 0)


def _disk(found: Findings, given: Given, rules: JobRules) -> None:
    check_room(found, given, room_of(rules), "disk of the job", "its models and updates")


def _rulings(found: Findings, given: Given, policy: Policy, rules: JobRules, job: Job) -> None:
    for ruling in policy.rulings(rules, creator=job.creator, role=given.role):
        if ruling.complaint:
            found.fail(
                "policy rule",
                f"{ruling.rule}: {ruling.complaint} [{ruling.code}]",
                "Ask for other rules of the job, or whoever keeps the policy file for another line.",
            )
        else:
            found.ok("policy rule", ruling.rule)


async def _joining(
    found: Findings, given: Given, reader: Reader, genesis: Genesis, account: bytes, identity: bytes
) -> None:
    if given.role == Role.EVALUATOR:
        listed = await reader.record(Evaluators, evaluators_key(identity))
        joined = listed is not None and account in listed.accounts
    else:
        joined = await reader.record(Joined, joined_key(identity, account)) is not None
    if joined:
        found.ok("joining", f"this account is in the job already, as {given.role}")
        return
    rules = await reader.record(JobRules, rules_key(identity))
    assert rules is not None
    body = JoinJob(identity, rules_hash(rules), given.role, await _dataset(given, reader, account))
    refused = await answer_to_joining(reader, genesis, account, body)
    if refused is None:
        found.ok("joining", f"the chain would take this account, as {given.role}")
        return
    error = RefusedByChain.of(refused.code, refused.sentence)
    found.fail("joining", f"the chain would say: {error.what} [{error.code}]", error.todo or "Mend that first.")


async def _dataset(given: Given, reader: Reader, account: bytes) -> bytes:
    if given.dataset is None:
        return b""
    if _is_id(given.dataset):
        return bytes.fromhex(given.dataset)
    named = await reader.record(Named, dataset_name_key(account, given.dataset))
    if named is None:
        raise RefusedByChain(
            "UNKNOWN_DATASET", f"This account has no data set {given.dataset!r}.", "quorate dataset list tells them."
        )
    return named.holder
