"""Signing a transaction, which needs no network: a chain's id, a key, a nonce. And its file, to be sent elsewhere.

    this machine, offline       sign_offline(…).save("join.tx")
    any machine with a network  network.send_signed("join.tx")       quorate tx send join.tx

What is signed offline is in the outbox of its account's home as well: it takes its nonce, and a run of that home that
has a network sends it, if it has not been sent, and fetches its receipt.
"""

from __future__ import annotations

import os
import string
import time
from contextlib import suppress
from pathlib import Path

from chain.codec import CodecError, decode, encode
from chain.genesis import Params
from chain.keys import SigningKey
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, account_id, id_of, sign_transaction
from fl.check import check_transaction
from fl.client.errors import BadFile, BadInput, RefusedByChain
from fl.client.home import Home, Pending, default_root
from fl.client.keyfile import load_key
from fl.client.networkfile import read_network
from fl.client.networks import Networks
from fl.client.transfer.doors import Signer
from fl.errors import PendingJob, Refused
from fl.state import RulesOf
from fl.transactions import KIND_OF_BODY

OFFLINE_VALID_FOR_S = 12 * 3600
"""Half of what a chain allows unless its genesis says otherwise."""
_FURTHEST_S = 366 * 24 * 3600


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def signed(signer: Signer, nonce: int, valid_until_ms: int, body: object) -> Pending:
    """Raises BadInput for a body that no transaction can hold."""
    kind = KIND_OF_BODY.get(type(body))
    if kind is None:
        raise BadInput("UNKNOWN_KIND", f"A {type(body).__name__} is no transaction's body.", "See fl.transactions.")
    try:
        data = encode(body)
        if len(data) > MAX_TRANSACTION_BYTES:
            raise RefusedByChain.of(
                "OVERSIZE", f"A transaction may take {MAX_TRANSACTION_BYTES} bytes, not {len(data)}."
            )
        tx = sign_transaction(signer.key, signer.chain, signer.account, nonce, valid_until_ms, kind, data)
    except CodecError as error:
        raise BadInput("BAD_VALUE", f"A transaction cannot hold this: {error}.", "Keep to its limits.") from None
    data = encode(tx)
    return Pending(tx, id_of(data), data)


def check_bytes(pending: Pending, chain_id: bytes, params: Params, rules_of: RulesOf, *, own: bool = True) -> None:
    """What every node would refuse is not sent, and takes no nonce. The signature is checked of what is not one's own.
    Raises RefusedByChain, or PendingJob when the rules of its job are not known."""
    try:
        check_transaction(pending.data, chain_id, params, rules_of, verify_signature=not own)
    except Refused as refused:
        raise RefusedByChain.of(refused.code, refused.sentence) from None


def sign_offline(
    network: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | SigningKey | None,
    body: object,
    *,
    nonce: int | None = None,
    valid_for_s: float = OFFLINE_VALID_FOR_S,
    passphrase: str | bytes | None = None,
    account: str | None = None,
    home: str | os.PathLike[str] | None = None,
) -> Pending:
    """Sign a transaction with this body and ask nobody: `save` it, and have it sent by `send_signed` wherever there is
    a network. `network`, `key`, `passphrase`, `account` and `home` are those of `connect`.

    Without a `nonce` it is the one after the last that this home has signed with; a home that has signed nothing has to
    be told (`quorate tx nonce` asks the chain). It must be executed within `valid_for_s`."""
    root = Path(home) if home is not None else default_root()
    chosen = Networks(root).choose(network)
    chain_id = read_network(chosen.file).checkpoint.chain_id
    signing = signing_key(key if key is not None else chosen.key, passphrase)
    if signing is None:
        raise BadInput("NO_KEY", "Signing needs a key.", "Name one: --key FILE")
    signer = Signer(chain_id, parsed_account(account) if account else account_id(signing.public), signing)
    kept = Home(root, chain_id, signer.account)
    chosen_nonce = kept.next_nonce() if nonce is None else nonce
    if chosen_nonce is None:
        raise BadInput(
            "NO_NONCE",
            f"{kept.directory} has signed nothing, so the account's next nonce is not known here.",
            "Give it: --nonce N. On a machine with the network, `quorate tx nonce` tells it; a new account's is 0.",
        )
    pending = signed(signer, chosen_nonce, _until_ms(kept, chain_id, valid_for_s), body)
    genesis = kept.genesis()
    if genesis is not None and genesis.chain_id == chain_id:
        # The rules of its job are on the chain; whoever sends it reads them.
        with suppress(PendingJob):
            check_bytes(pending, chain_id, genesis.params, lambda job: None)
    if not kept.keep(pending):
        raise nonce_taken(kept, pending)
    kept.note("signed", pending)
    return pending


def _until_ms(kept: Home, chain_id: bytes, valid_for_s: float) -> int:
    if not 0 < valid_for_s <= _FURTHEST_S:
        raise BadInput("BAD_VALUE", f"A transaction cannot be valid for {valid_for_s} s.", "12 h are 43200.")
    genesis = kept.genesis()
    most_ms = genesis.params.max_validity_ms if genesis is not None and genesis.chain_id == chain_id else None
    if most_ms is not None and valid_for_s * 1000 > most_ms:
        raise BadInput(
            "BAD_VALUE",
            f"This chain takes transactions that are valid for {most_ms // 1000} s at most.",
            "Choose less.",
        )
    return now_ms() + int(valid_for_s * 1000)


def nonce_taken(kept: Home, pending: Pending) -> BadInput:
    return BadInput(
        "NONCE_TAKEN",
        f"{kept.directory} has another transaction in flight under the nonce {pending.tx.nonce}.",
        "Sign with another nonce, or send that one first: quorate tx send",
    )


def read_signed(path: Path) -> Pending:
    """What `Pending.save` wrote. Nothing of it is checked but its form."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TRANSACTION_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    try:
        tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
    except CodecError as error:
        raise BadFile("BAD_TRANSACTION", f"{path} is no signed transaction: {error}.", "Sign it again.") from None
    return Pending(tx, id_of(data), data)


def signing_key(key: str | os.PathLike[str] | SigningKey | None, passphrase: str | bytes | None) -> SigningKey | None:
    if key is None or isinstance(key, SigningKey):
        return key
    secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
    return load_key(Path(key), secret)


def parsed_account(text: str) -> bytes:
    return _digest(text, "BAD_ACCOUNT", "account")


def parsed_id(text: str) -> bytes:
    return _digest(text, "BAD_ID", "transaction")


def _digest(text: str, code: str, of: str) -> bytes:
    if len(text) != 64 or set(text) - set(string.hexdigits):
        raise BadInput(code, f"'{text}' is no {of}'s id.", "It has 64 hexadecimal digits.")
    return bytes.fromhex(text)
