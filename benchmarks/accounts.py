"""Who sends the load, and the jobs that it belongs to."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import raw_cid
from chain.codec import encode, pack
from chain.hashing import Domain, signing_bytes
from chain.keys import ED25519, SIGNATURE_BYTES, SigningKey
from chain.transaction import Transaction, account_id, id_of, sign_transaction
from cli.http import Place as Door
from cli.http import fetch
from cli.localnets import LocalNetwork
from fl.client.keyfile import load_key
from fl.jobrules import zero_model_cid
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.rules import rule_of
from fl.rules.rule import Settings, written_settings
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.transactions import KIND_OF_BODY
from fl.updates import form_of

HOUR_MS = 3_600_000


class Account:
    """One key, and the next nonce that it signs with."""

    def __init__(self, chain_id: bytes, key: SigningKey) -> None:
        self.chain_id = chain_id
        self.key = key
        self._nonce = 0
        self.id = account_id(key.public)

    @classmethod
    def of(cls, net: LocalNetwork, name: str) -> Account:
        return cls(bytes.fromhex(net.chain_id), load_key(net.key_file(name)))

    @classmethod
    def resumed(cls, net: LocalNetwork, name: str) -> Account:
        """After what the first validator has executed of it."""
        account = cls.of(net, name)
        account._nonce = int(fetch(Door(net.members["v0"].rpc), f"/v1/accounts/{account.id.hex()}")["next_nonce"])
        return account

    def stamp(self) -> tuple[int, int]:
        """A nonce that is not used again, and the time until which it is good."""
        nonce, self._nonce = self._nonce, self._nonce + 1
        return nonce, time.time_ns() // 1_000_000 + HOUR_MS

    def sign(self, body: object) -> bytes:
        kind = KIND_OF_BODY[type(body)]
        return encode(sign_transaction(self.key, self.chain_id, self.id, *self.stamp(), kind, encode(body)))


def rules_of(name: str, parameters: int, trainers: int, rounds: int = 1, encoding: str = "q8") -> JobRules:
    """Rounds that close when all trainers have answered."""
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    return JobRules(
        name=name,
        schema=schema,
        initial=zero_model_cid(schema),
        mode="sync",
        rule="fedavg",
        encoding=encoding,
        range_bits=8,
        weights="examples",
        cap=1000,
        target=trainers,
        minimum=trainers,
        maximum=trainers,
        deadline_ms=HOUR_MS,
        grace_ms=HOUR_MS,
        rounds=rounds,
        max_failed=1,
        privacy="visible-to-validators",
        metrics=(),
        config=(),
        app="",
        app_digest=b"",
    )


def ruled(rules: JobRules, rule: str, settings: Settings) -> JobRules:
    """The same under another rule, all members alike."""
    return replace(rules, rule=rule, settings=written_settings(rule_of(rule), settings), weights="equal", cap=1)


class InlineUpdates:
    """Of one job: for each trainer the same values every round, encoded once; only the header names the round."""

    def __init__(self, job: bytes, rules: JobRules, values: NDArray[np.float32]) -> None:
        self.job = job
        self.rules = rules
        self._form = form_of(rules, 0)
        place = Place(job, 1, bytes(32))
        self._values = encode_update(self._form, place, {"w": values})[len(self._form.header(place)) :]
        self._round: _Round | None = None

    def signed(self, account: Account, round_: int, base: bytes) -> bytes:
        chosen = account.chain_id, round_, base
        if self._round is None or self._round.chosen != chosen:
            payload = self._form.header(Place(self.job, round_, _MEMBER)) + self._values
            self._round = _Round(chosen, SubmitUpdate(self.job, round_, base, 10, (), 0, _CID, payload))
        return self._round.signed(account)


_MEMBER, _CID = sha256(b"a member").digest(), raw_cid(b"a payload")
_KEY = ED25519 + sha256(b"a key").digest()
_NONCE, _UNTIL_MS = 2**64 - 2, 2**64 - 1


class _Round:
    """All updates of one round. They differ in who sends them, and when: one is encoded with something else in these
    places, and cut there."""

    def __init__(self, chosen: tuple[bytes, int, bytes], body: SubmitUpdate) -> None:
        self.chosen = chosen
        chain_id, _, _ = chosen
        kind = int(KIND_OF_BODY[SubmitUpdate])
        unsigned = Transaction(chain_id, _MEMBER, _KEY, _NONCE, _UNTIL_MS, kind, encode(body), bytes(SIGNATURE_BYTES))
        whole = encode(unsigned)[:-SIGNATURE_BYTES]
        self._pieces = _cut(whole, _MEMBER, _KEY, pack(_NONCE), pack(_UNTIL_MS), _CID, body.payload)
        self._payload = _cut(body.payload, _MEMBER.hex().encode())
        self._message = signing_bytes(Domain.TX, chain_id, 0, b"")

    def signed(self, account: Account) -> bytes:
        (to_member, to_values), (nonce, until_ms) = self._payload, account.stamp()
        payload = b"".join((to_member, account.id.hex().encode(), to_values))
        to_sender, to_key, to_nonce, to_until, to_cid, to_payload, to_signature = self._pieces
        unsigned = b"".join(
            (
                *(to_sender, account.id, to_key, account.key.public, to_nonce, pack(nonce), to_until, pack(until_ms)),
                *(to_cid, raw_cid(payload), to_payload, payload, to_signature),
            )
        )
        return unsigned + account.key.sign(self._message + id_of(unsigned + bytes(SIGNATURE_BYTES)))


def _cut(whole: bytes, *places: bytes) -> list[bytes]:
    """What is between these, which follow each other in the whole, each once."""
    pieces = []
    for each in places:
        piece, found, whole = whole.partition(each)
        assert found
        pieces.append(piece)
    return [*pieces, whole]


def some_values(count: int, seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.01, count).astype(np.float32)
