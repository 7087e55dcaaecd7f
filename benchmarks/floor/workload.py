"""What the floor is asked, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from chain.codec import encode
from chain.keys import SigningKey
from chain.transaction import Transaction, account_id, sign_transaction
from fl.jobrules import zero_model_cid
from fl.records import JobRules
from fl.tensors.encodings import Place, UpdateForm
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of

MIB = 1024 * 1024
INLINE_BYTES = 32 * 1024
"""The largest payload that goes into a transaction."""
CHAIN, JOB = b"f" * 32, b"j" * 32
NEVER_MS = 2**62
SIGNERS = 256
HOUR_MS = 3_600_000


class Pages(StrEnum):
    FRESH = "fresh"
    REUSED = "reused"


@dataclass(frozen=True, slots=True)
class Workload:
    validators: int = 4
    updates: int = 4096
    parameters: int = 1000
    encoding: str = "q8"
    pages: Pages = Pages.FRESH
    passes: int = 3
    """After one that warms up."""

    @property
    def rules(self) -> JobRules:
        schema = Schema((TensorSpec("w", "F32", (self.parameters,), AVERAGED),))
        return JobRules(
            name="floor",
            schema=schema,
            initial=zero_model_cid(schema),
            mode="sync",
            rule="fedavg",
            encoding=self.encoding,
            range_bits=8,
            weights="examples",
            cap=1000,
            target=self.updates,
            minimum=self.updates,
            maximum=self.updates,
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

    @property
    def form(self) -> UpdateForm:
        return form_of(self.rules, 0)

    @property
    def payload_bytes(self) -> int:
        return self.form.size_bytes(place_of(0))

    @property
    def inline(self) -> bool:
        return self.payload_bytes <= INLINE_BYTES


def key_of(member: int) -> SigningKey:
    return SigningKey.from_seed(b"member" + member.to_bytes(26, "big"))


def place_of(member: int) -> Place:
    return Place(JOB, 1, account_id(key_of(member).public))


def weight(number: int) -> int:
    """Of an update."""
    return 1 + number % 1000


def signed(member: int, nonce: int, kind: int, body: object) -> bytes:
    key = key_of(member)
    tx: Transaction = sign_transaction(key, CHAIN, account_id(key.public), nonce, NEVER_MS, kind, encode(body))
    return encode(tx)


@dataclass(frozen=True, slots=True)
class FloorResult:
    workload: Workload
    all_seconds: tuple[float, ...]
    """Of each pass, from the first byte that a client sends to the last validator that is done."""
    cpu_s: dict[str, float]
    """Of a pass, all processes together, by step; `other` is what no step accounts for."""
    client_cpu_s: float
    validator_cpu_s: float
    """Of all validators together."""
    came_to: bytes
    """The same for all validators: the hash of the sums of small updates, of the new model of large ones."""
    load: float
    """The load average of the machine as it began."""

    @property
    def seconds(self) -> float:
        return median(self.all_seconds)

    @property
    def updates_s(self) -> float:
        return self.workload.updates / self.seconds

    @property
    def mib_s(self) -> float:
        """Payloads."""
        return self.workload.updates * self.workload.payload_bytes / MIB / self.seconds

    @property
    def cpu_us_an_update_and_validator(self) -> float:
        return self.validator_cpu_s / self.workload.updates / self.workload.validators * 1e6

    @property
    def cpu_ms_a_mib(self) -> float:
        """Of everything, for a MiB of payloads."""
        mib = self.workload.updates * self.workload.payload_bytes / MIB
        return (self.validator_cpu_s + self.client_cpu_s) / mib * 1e3

    @property
    def cores(self) -> float:
        """Busy with it."""
        return (self.validator_cpu_s + self.client_cpu_s) / self.seconds

    def report(self) -> dict[str, Any]:
        asked = self.workload
        return {
            "validators": asked.validators,
            "updates": asked.updates,
            "parameters": asked.parameters,
            "encoding": asked.encoding,
            "payload_bytes": asked.payload_bytes,
            "pages": str(asked.pages),
            "seconds": round(self.seconds, 4),
            "all_seconds": [round(each, 4) for each in self.all_seconds],
            "updates_s": round(self.updates_s, 1),
            "mib_s": round(self.mib_s, 2),
            "cpu_us_an_update_and_validator": round(self.cpu_us_an_update_and_validator, 1),
            "cpu_ms_a_mib": round(self.cpu_ms_a_mib, 3),
            "cpu_s_by_step": {step: round(seconds, 4) for step, seconds in self.cpu_s.items()},
            "cpu_s_validators": round(self.validator_cpu_s, 3),
            "cpu_s_client": round(self.client_cpu_s, 3),
            "cores_busy": round(self.cores, 2),
            "load_average": round(self.load, 1),
        }
