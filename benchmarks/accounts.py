"""Who sends the load, and the jobs that it belongs to."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import raw_cid
from chain.codec import encode
from chain.keys import SigningKey
from chain.transaction import account_id, sign_transaction
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
        self._chain_id = chain_id
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

    def sign(self, body: object) -> bytes:
        nonce, self._nonce = self._nonce, self._nonce + 1
        until_ms = time.time_ns() // 1_000_000 + HOUR_MS
        kind = KIND_OF_BODY[type(body)]
        return encode(sign_transaction(self.key, self._chain_id, self.id, nonce, until_ms, kind, encode(body)))


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

    def signed(self, account: Account, round_: int, base: bytes) -> bytes:
        payload = self._form.header(Place(self.job, round_, account.id)) + self._values
        return account.sign(SubmitUpdate(self.job, round_, base, 10, (), 0, raw_cid(payload), payload))


def some_values(count: int, seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.01, count).astype(np.float32)
