"""Accounts: which key speaks for one, and which of its nonces are free.

An account is named by the hash of its first public key and comes to be with its first executed transaction.
Nonces may be used in any order within a window above the floor, so many transactions can be in flight; each
is used once, however often and in however many batches it is ordered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chain.codec import PublicKey, Signature
from chain.genesis import Params
from chain.hashing import Domain, signing_bytes
from chain.keys import SigningKey, WeakKey, check_public_key, verify
from chain.transaction import Transaction, account_id
from fl.errors import Refused
from fl.execution import Call, Effect, Execution
from fl.records import Account, EventKind
from fl.state import RulesOf, State, account_key


@dataclass(frozen=True, slots=True)
class RotateKey:
    """From here on the account is spoken for by `new_key`, which signs `proof`."""

    new_key: PublicKey
    proof: Signature


def new_account(key: bytes) -> Account:
    return Account(key, 0, b"")


def account_for(state: State, sender: bytes, key: bytes) -> Account:
    """The account in whose name this key may act, or WRONG_KEY."""
    account = state.get(Account, account_key(sender))
    if account is None and account_id(key) == sender:
        account = new_account(key)
    if account is None or account.key != key:
        raise Refused("WRONG_KEY")
    return account


def check_nonce(account: Account, nonce: int, window: int) -> None:
    """Raises NONCE_USED or NONCE_FAR unless the nonce is free."""
    distance = nonce - account.floor
    if distance < 0:
        raise Refused("NONCE_USED")
    if distance >= window:
        raise Refused("NONCE_FAR")
    if int.from_bytes(account.used, "little") >> distance & 1:
        raise Refused("NONCE_USED")


def free_account(state: State, tx: Transaction, now_ms: int, window: int) -> Account:
    """The account that pays for this transaction with its nonce. Raises what nobody pays for: WRONG_KEY,
    EXPIRED, NONCE_USED, NONCE_FAR; admission asks it too, of the newest state it has."""
    account = state.get(Account, account_key(tx.sender))
    if account is None or account.key != tx.key:
        account = account_for(state, tx.sender, tx.key)
    if now_ms > tx.valid_until_ms:
        raise Refused("EXPIRED")
    if tx.nonce != account.floor:
        check_nonce(account, tx.nonce, window)
    return account


def with_nonce_used(account: Account, nonce: int) -> Account:
    if nonce == account.floor and not account.used:
        return Account(account.key, nonce + 1, b"")
    used = int.from_bytes(account.used, "little") | 1 << (nonce - account.floor)
    prefix = ((used + 1) & ~used).bit_length() - 1
    rest = used >> prefix
    return Account(account.key, account.floor + prefix, rest.to_bytes((rest.bit_length() + 7) // 8, "little"))


def rotation(key: SigningKey, chain: bytes, sender: bytes) -> RotateKey:
    """The body by which `sender` passes to this new key."""
    return RotateKey(key.public, key.sign(_rotation_message(chain, sender, key.public)))


def check_rotation(body: RotateKey, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    try:
        check_public_key(body.new_key)
    except WeakKey as weak:
        raise Refused("WEAK_KEY", str(weak)) from None
    if not verify(body.new_key, _rotation_message(tx.chain, tx.sender, body.new_key), body.proof):
        raise Refused("BAD_PROOF")


def rotate_key(execution: Execution, call: Call, body: RotateKey) -> Effect:
    key = account_key(call.sender)
    account = account_for(execution.state, call.sender, call.key)
    execution.state.put(key, replace(account, key=body.new_key))
    execution.event(EventKind.KEY_ROTATED, subject=call.sender)
    return Effect()


def _rotation_message(chain: bytes, sender: bytes, new_key: bytes) -> bytes:
    return signing_bytes(Domain.POSSESSION, chain, 0, b"account" + sender + new_key)
