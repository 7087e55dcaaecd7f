"""The state with proofs, and what it says of accounts and members."""

from __future__ import annotations

from chain.codec import decode, encode
from chain.light import MAX_KEY_BYTES, StateBundle
from fl.records import Account, Member, Registrars
from fl.state import REGISTRARS, account_key, member_key, read_record
from node.rpc.api import Api
from node.rpc.fl_views import MembersView, MemberView, StateView, account_view, member_view
from node.rpc.problems import Problem
from node.rpc.requests import LIMIT, Param, Request, Response, digest_cursor, digest_param, hex_bytes, json_response
from node.rpc.views import in_base64

KEY = Param(
    "key",
    "path",
    hex_bytes(1, MAX_KEY_BYTES),
    {"type": "string", "pattern": f"^([0-9a-f]{{2}}){{1,{MAX_KEY_BYTES}}}$"},
    "A state key, in hex.",
)
ACCOUNT = digest_param("account", "An account's id.")
AFTER = digest_cursor()

_MEMBERS = member_key(b"")


def state_bundle(api: Api, key: bytes) -> StateBundle:
    """The key's value, or that it has none, in the newest certified state that can still be proven."""
    certificate, executed = api.certified()
    value, proof = api.node.executor.tree.prove(executed.height, key, api.node.store.state)
    return StateBundle(executed.height, certificate, key, value, proof)


async def state(api: Api, request: Request) -> Response:
    bundle = state_bundle(api, request[KEY])
    return json_response(
        StateView(
            height=bundle.height,
            key=bundle.key.hex(),
            value=None if bundle.value is None else in_base64(bundle.value),
            bundle=in_base64(encode(bundle)),
        )
    )


async def account(api: Api, request: Request) -> Response:
    """In the newest executed state. An account that has done nothing yet does not exist, and may begin."""
    identity = request[ACCOUNT]
    return json_response(account_view(identity, account_of(api, identity)))


def account_of(api: Api, identity: bytes) -> Account | None:
    return read_record(api.node.store.state, Account, account_key(identity))


def member_of(api: Api, identity: bytes) -> Member | None:
    return read_record(api.node.store.state, Member, member_key(identity))


def _registrars(api: Api) -> frozenset[bytes]:
    found = read_record(api.node.store.state, Registrars, REGISTRARS)
    return frozenset(found.accounts) if found is not None else frozenset()


async def members(api: Api, request: Request) -> Response:
    rows = api.node.store.state_rows(_MEMBERS, member_key(request[AFTER] or b""))
    registrars = _registrars(api)
    views: list[MemberView] = []
    following = None
    for key, data in rows:
        identity = key[len(_MEMBERS) :]
        if len(views) == request[LIMIT]:
            following = identity.hex()
            break
        views.append(member_view(identity, decode(Member, data, len(data)), identity in registrars))
    return json_response(MembersView(members=views, next=following))


async def member(api: Api, request: Request) -> Response:
    identity = request[ACCOUNT]
    found = member_of(api, identity)
    if found is None:
        raise Problem.beside("UNKNOWN_MEMBER")
    return json_response(member_view(identity, found, identity in _registrars(api)))
