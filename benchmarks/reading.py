"""What it costs to read, identify and check one small update, and to write what comes of it, as JSON.

    python -m benchmarks.reading [--parameters 1000] [--batch 300] [--repeats 9] [--out reading.json]

Each figure is microseconds of processor time for one call, the median of the repeats, in one process and on one thread.
The transaction is a q8 update, inline, as the scenario of small updates sends them. `check_transaction` is the whole of
what a validator does with its bytes besides the signature, which stands beside it; `each of 64` is the same for one of
many, of as many members, that it has before it together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine, versions
from chain.batch import Batch, SignedBatch, sign_batch
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.genesis import Params
from chain.keys import SigningKey
from chain.transaction import (
    MAX_TRANSACTION_BYTES,
    Transaction,
    account_id,
    id_of,
    sign_transaction,
    verify_transaction,
)
from fl.check import check_all, check_transaction
from fl.jobrules import zero_model_cid
from fl.records import Account, Entry, JobRules, Kind, Receipt
from fl.rounds import SubmitUpdate
from fl.state import MAX_VALUE_BYTES
from fl.tensors.encodings import Place, check_payload, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.transactions import read, read_all
from fl.updates import form_of

CHAIN = bytes(range(32))
JOB = bytes(range(32, 64))
TIME_MS = 1_763_000_000_000
HOUR_MS = 3_600_000
A_REPEAT_S = 0.2
TOGETHER = 64


def job_rules(parameters: int) -> JobRules:
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    return JobRules(
        name="reading",
        schema=schema,
        initial=zero_model_cid(schema),
        mode="sync",
        rule="fedavg",
        encoding="q8",
        range_bits=8,
        weights="examples",
        cap=1000,
        target=8,
        minimum=8,
        maximum=8,
        deadline_ms=HOUR_MS,
        grace_ms=HOUR_MS,
        rounds=1,
        max_failed=1,
        privacy="visible-to-validators",
        metrics=(),
        config=(),
        app="",
        app_digest=b"",
    )


def update_of(rules: JobRules, key: SigningKey, nonce: int, values: NDArray[np.float32]) -> bytes:
    place = Place(JOB, 1, account_id(key.public))
    payload = encode_update(form_of(rules, 0), place, {"w": values})
    body = SubmitUpdate(JOB, 1, rules.initial, 10, (), 0, raw_cid(payload), payload)
    return encode(sign_transaction(key, CHAIN, place.member, nonce, TIME_MS, Kind.SUBMIT_UPDATE, encode(body)))


def together(parameters: int, count: int) -> dict[str, Callable[[], object]]:
    rules, params, draw = job_rules(parameters), Params(), np.random.default_rng(1)
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(count)]
    transactions = [
        update_of(rules, key, 300 + nonce, draw.normal(0, 0.01, parameters).astype(np.float32))
        for nonce, key in enumerate(keys)
    ]
    rules_of = {JOB: rules}.get
    return {
        f"read, each of {count}": lambda: read_all(transactions, params),
        f"check, each of {count}": lambda: check_all(transactions, CHAIN, params, rules_of, verify_signatures=False),
    }


def steps(parameters: int, in_a_batch: int) -> dict[str, Callable[[], object]]:
    rules, params = job_rules(parameters), Params()
    key = SigningKey(bytes(32))
    sender = account_id(key.public)
    place, form = Place(JOB, 1, sender), form_of(rules, 0)
    data = update_of(rules, key, 300, np.random.default_rng(1).normal(0, 0.01, parameters).astype(np.float32))
    tx, identity = decode(Transaction, data, MAX_TRANSACTION_BYTES), id_of(data)
    body = decode(SubmitUpdate, tx.body, MAX_TRANSACTION_BYTES)
    payload = body.payload
    receipt = Receipt(identity, 1_000, CHAIN, 7, sender, 300, Kind.SUBMIT_UPDATE, "ok", JOB, 1, 70_000, 10)
    entry = Entry(identity, sender, 1, 10, 0, body.cid, CHAIN, 7)
    account = Account(key.public, 300, bytes(8))
    batch = sign_batch(key, Batch(CHAIN, 0, 1, 9, 1_000, 2_024, (data,) * in_a_batch))
    offered, written, kept, known = encode(batch), encode(receipt), encode(entry), encode(account)
    rules_of = {JOB: rules}.get
    whole = f"SignedBatch of {in_a_batch}"
    return {
        "decode Transaction": lambda: decode(Transaction, data, MAX_TRANSACTION_BYTES),
        "decode SubmitUpdate": lambda: decode(SubmitUpdate, tx.body, MAX_TRANSACTION_BYTES),
        "id_of": lambda: id_of(data),
        "read": lambda: read(data, params),
        "raw_cid": lambda: raw_cid(payload) == body.cid,
        "form_of": lambda: form_of(rules, 0),
        "check_payload": lambda: check_payload(form, place, payload),
        "check_transaction": lambda: check_transaction(data, CHAIN, params, rules_of, verify_signature=False),
        "verify_transaction": lambda: verify_transaction(tx, identity),
        "encode SubmitUpdate": lambda: encode(body),
        "encode Transaction": lambda: encode(tx),
        "encode Receipt": lambda: encode(receipt),
        "decode Receipt": lambda: decode(Receipt, written, MAX_VALUE_BYTES),
        "encode Entry": lambda: encode(entry),
        "decode Entry": lambda: decode(Entry, kept, MAX_VALUE_BYTES),
        "encode Account": lambda: encode(account),
        "decode Account": lambda: decode(Account, known, MAX_VALUE_BYTES),
        f"encode {whole}": lambda: encode(batch),
        f"decode {whole}": lambda: decode(SignedBatch, offered, len(offered)),
    }


def microseconds(step: Callable[[], object], repeats: int) -> float:
    start, calls = time.process_time(), 0
    while time.process_time() - start < A_REPEAT_S:
        step()
        calls += 1
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            step()
        taken.append((time.process_time() - start) / calls)
    return statistics.median(taken) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    found = {
        name: round(microseconds(step, arguments.repeats), 2)
        for name, step in steps(arguments.parameters, arguments.batch).items()
    }
    for name, step in together(arguments.parameters, TOGETHER).items():
        found[name] = round(microseconds(step, arguments.repeats) / TOGETHER, 2)
    report = {
        "machine": machine(),
        "versions": versions(),
        "parameters": arguments.parameters,
        "microseconds": found,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
