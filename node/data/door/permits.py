"""Who may do what at the door: leaves that members signed, and what the state says of whoever signed them.

A leave is checked from the cheapest question to the dearest, and before anything is allocated for the request that it
came with: it decodes, it is of this chain, in time, for this action on this blob, well signed; and then the core is
asked whether that key speaks for the account, and as what.
"""

from __future__ import annotations

from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

from chain.cid import CID_BYTES
from chain.codec import CodecError, decode
from fl.access import MAX_LEAVE_BYTES, MAX_LEAVE_MS, Action, Leave, SignedLeave, verify_leave
from fl.records import Role
from node.data.messages import Standing
from node.ports import Clock, PortError
from node.rpc.problems import Problem
from node.rpc.requests import Request

SCHEME = "Quorate"
CHALLENGE = {"WWW-Authenticate": SCHEME}
NO_CID = bytes(CID_BYTES)
"""What a leave to read a list names."""
VALIDATOR = "validator"
KEPT = 4_096
"""Leaves whose signature was found good: the leaves of a blob come by the hundred, each with the same one."""

_TEXT_BYTES = MAX_LEAVE_BYTES * 4 // 3 + 4

Ask: TypeAlias = Callable[[bytes, bytes], Awaitable[Standing]]
"""Of an account and a key. Raises PortError when the core does not say, after a few seconds at the latest."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who came with a good leave."""

    leave: Leave
    current_key: bool
    roles: frozenset[str]

    @property
    def account(self) -> bytes:
        return self.leave.account

    @property
    def member(self) -> bool:
        return self.current_key and bool(self.roles - {VALIDATOR})

    @property
    def sees_all(self) -> bool:
        return self.current_key and bool(self.roles & {Role.AUDITOR, VALIDATOR})

    def owns(self, account: bytes) -> bool:
        return self.current_key and account == self.account


class Permits:
    def __init__(self, chain: bytes, clock: Clock, ask: Ask) -> None:
        self._chain = chain
        self._clock = clock
        self._ask = ask
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def putter(self, request: Request, cid: bytes) -> Bearer:
        """A member who may put this blob. The kind and the size that it may have are in its leave."""
        bearer = await self._bearer(request, Action.PUT, cid)
        if not bearer.current_key:
            raise Problem.beside("WRONG_KEY")
        if not bearer.member:
            raise Problem.beside("NOT_MEMBER")
        return bearer

    async def reader(self, request: Request, cid: bytes) -> Bearer | None:
        """None if the request came without a leave."""
        if "Authorization" not in request.headers:
            return None
        return await self._bearer(request, Action.READ, cid)

    async def _bearer(self, request: Request, action: Action, cid: bytes) -> Bearer:
        text = request.headers.get("Authorization")
        if text is None:
            raise Problem("NO_LEAVE", headers=CHALLENGE)
        signed = _read(text)
        leave = signed.leave
        if leave.chain != self._chain:
            raise Problem("LEAVE_MISMATCH", "The leave is for another chain.")
        now_ms = self._clock.now().wall_ms
        if not now_ms < leave.valid_until_ms <= now_ms + MAX_LEAVE_MS:
            raise Problem("LEAVE_EXPIRED", headers=CHALLENGE)
        if leave.action != action:
            raise Problem("LEAVE_MISMATCH", f"The leave is not one to {action.name.lower()}.")
        if leave.cid != cid:
            raise Problem("LEAVE_MISMATCH", "The leave is for another blob.")
        if not self._verified(text, signed):
            raise Problem("NO_LEAVE", "The leave's signature is not its key's.", headers=CHALLENGE)
        try:
            standing = await self._ask(leave.account, leave.key)
        except PortError as error:
            raise Problem("CORE_DOWN", str(error)) from None
        return Bearer(leave, standing.current_key, frozenset(standing.roles))

    def _verified(self, text: str, signed: SignedLeave) -> bool:
        name = sha256(text.encode()).digest()
        if name in self._good:
            self._good.move_to_end(name)
            return True
        if not verify_leave(signed):
            return False
        self._good[name] = None
        if len(self._good) > KEPT:
            self._good.popitem(last=False)
        return True


def _read(text: str) -> SignedLeave:
    scheme, _, encoded = text.partition(" ")
    try:
        if scheme.lower() != SCHEME.lower() or len(encoded) > _TEXT_BYTES:
            raise ValueError
        bare = encoded.rstrip("=")
        data = b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
        return decode(SignedLeave, data, MAX_LEAVE_BYTES)
    except (ValueError, CodecError):
        raise Problem(
            "NO_LEAVE", f"The header must be '{SCHEME} ' and a signed leave in base64url.", headers=CHALLENGE
        ) from None
