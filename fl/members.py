"""Members: who may take part, in which roles, and who says so.

The genesis names the registrars and whether admission is theirs alone. Under open admission anyone may
register its own key, in every role but that of an operator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated

from chain.codec import Count, Digest, PublicKey
from chain.genesis import Params
from chain.keys import WeakKey, check_public_key
from chain.transaction import Transaction, account_id
from fl.cohort import leave
from fl.errors import Refused
from fl.evaluators import evaluators_of, leave_evaluators
from fl.execution import Call, Effect, Execution
from fl.records import EventKind, Job, Joined, MaybeName, Member, Name, Named, Registrars, Role, Word
from fl.state import REGISTRARS, RulesOf, State, job_key, joined_key, member_key, member_name_key

ROLES = frozenset(Role)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class RegisterMember:
    """Without an `organisation`, the member stands for itself."""

    name: Name
    key: PublicKey
    roles: Annotated[tuple[Word, ...], Count(0, len(Role))]
    organisation: MaybeName = ""


@dataclass(frozen=True, slots=True)
class RevokeMember:
    member: Digest


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_registrar(state: State, account: bytes) -> bool:
    registrars = state.get(Registrars, REGISTRARS)
    return registrars is not None and account in registrars.accounts


def member_of(state: State, account: bytes) -> Member:
    """The member behind this account, whatever its roles, or NOT_MEMBER or REVOKED."""
    member = state.get(Member, member_key(account))
    if member is None:
        raise Refused("NOT_MEMBER")
    if member.revoked:
        raise Refused("REVOKED")
    return member


def member_in_role(state: State, account: bytes, role: Role) -> Member:
    """The member behind this account, or NOT_MEMBER, REVOKED or UNAUTHORISED."""
    member = member_of(state, account)
    if role not in member.roles:
        raise Refused("UNAUTHORISED", f"This needs the role {role.value}; a registrar grants it.")
    return member


def check_registration(body: RegisterMember, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    if not is_name(body.name) or (body.organisation and not is_name(body.organisation)):
        raise Refused("BAD_NAME")
    if list(body.roles) != sorted(set(body.roles) & ROLES):
        raise Refused("BAD_ROLES", "Roles must be sorted, distinct, and among: " + ", ".join(sorted(ROLES)) + ".")
    try:
        check_public_key(body.key)
    except WeakKey as weak:
        raise Refused("WEAK_KEY", str(weak)) from None


def register_member(execution: Execution, call: Call, body: RegisterMember) -> Effect:
    state = execution.state
    account = account_id(body.key)
    by_registrar = is_registrar(state, call.sender)
    if not by_registrar:
        registrars = state.get(Registrars, REGISTRARS)
        own = registrars is not None and registrars.open_admission and account == call.sender
        if not own or Role.OPERATOR in body.roles:
            raise Refused("UNAUTHORISED", "A registrar registers members on this chain.")
        if body.organisation:
            # A stranger in it would take of what its members may weigh.
            raise Refused("UNAUTHORISED", "A registrar says who belongs to an organisation.")
    known = state.get(Member, member_key(account))
    if known is not None and not (known.revoked and by_registrar):
        raise Refused("REVOKED" if known.revoked else "ALREADY_MEMBER")
    holder = state.get(Named, member_name_key(body.name))
    if holder is not None and holder.holder != account:
        raise Refused("NAME_TAKEN")
    member = Member(body.name, body.roles, False, execution.block.height, body.organisation)
    add_member(execution, account, member)
    execution.event(EventKind.MEMBER_REGISTERED, subject=account)
    return Effect()


def add_member(execution: Execution, account: bytes, member: Member) -> None:
    state = execution.state
    known = state.get(Member, member_key(account))
    if known is None:
        execution.count(members=1)
    else:
        state.delete(member_name_key(known.name), Named)
    state.put(member_key(account), member)
    state.put(member_name_key(member.name), Named(account))


def revoke_member(execution: Execution, call: Call, body: RevokeMember) -> Effect:
    """The name stays the member's, so that nobody else takes its place under it."""
    state = execution.state
    if not is_registrar(state, call.sender):
        raise Refused("UNAUTHORISED", "Only a registrar revokes members.")
    member = state.get(Member, member_key(body.member))
    if member is None:
        raise Refused("UNKNOWN_MEMBER")
    if member.revoked:
        raise Refused("REVOKED")
    state.put(member_key(body.member), replace(member, revoked=True))
    for opened in execution.open_jobs():
        joined = state.get(Joined, joined_key(opened.job, body.member))
        job = state.get(Job, job_key(opened.job))
        if joined is not None and job is not None:
            leave(execution, opened.job, job, body.member, joined)
            job = state.get(Job, job_key(opened.job))
        if job is not None and body.member in evaluators_of(state, opened.job):
            leave_evaluators(execution, opened.job, job, body.member)
    execution.event(EventKind.MEMBER_REVOKED, subject=body.member)
    return Effect()
