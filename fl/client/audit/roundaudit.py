"""One round under audit: what each step looks at, fetched and checked. `fl.client.audit.verify` says in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from chain.codec import CodecError, decode
from fl.audit import checks
from fl.audit.recorded import Contribution, History, Recorded, Signed
from fl.audit.steps import Finding, Step, Verdict, judged
from fl.blobs import check_blob
from fl.client.audit.recordings import Recordings, Spool
from fl.client.errors import QuorateError, RefusedByChain, Unreachable, Unverified
from fl.client.transfer.blobs import Progress, quiet
from fl.client.transfer.upload import at_once
from fl.errors import Refused
from fl.records import Account, Entry, Job, Phase, Round
from fl.state import account_key
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord
from fl.tensors.layout import Bytes
from fl.tensors.model import check_model_frame, model_form
from fl.weights import DATASET

if TYPE_CHECKING:
    from fl.client.job import AsyncJob
    from fl.client.network import AsyncNetwork

HEAD, RECORDS, HISTORY, LOG = "head", "records", "history", "log"
TRANSACTIONS, SIGNATURES, WEIGHTS, PAYLOADS = "transactions", "signatures", "weights", "payloads"
BASE, MOMENTS, RECORD = "base", "moments", "record"

_BLOBS_AT_ONCE = 4
_ARCHIVE = (
    "Nodes keep those of a job's last rounds (`keep_update_rounds`, `keep_models`): ask one that keeps all"
    " (`archive = true`) with --archive URL."
)


@dataclass(slots=True)
class Log:
    """The entries of a round's log with their transactions, and where the payloads are."""

    signed: list[Signed] = field(default_factory=list)
    payloads: dict[int, Callable[[], Bytes]] = field(default_factory=dict)

    def contributions(self) -> list[Contribution]:
        """In the order of the log. Every payload is there."""
        return [
            Contribution(
                each.position,
                each.entry.member,
                each.body.round,
                each.entry.weight,
                each.entry.group,
                self.payloads[each.position],
            )
            for each in self.signed
        ]


class RoundAudit:
    """One round of a job. What an earlier step brings, later ones use."""

    def __init__(self, network: AsyncNetwork, name_or_id: str, number: int, progress: Progress = quiet) -> None:
        self.network = network
        self.number = number
        self.job: AsyncJob
        self.recordings: Recordings
        self.current: Round
        self.history: History
        self.rests: list[str] = list(checks.RESTS)
        self.log = Log()
        self.base: Bytes
        self.moments: Bytes | None = None
        self.record: ClosingRecord | None = None
        self._name = name_or_id
        self._bases: dict[int, bytes] = {}
        self._entries: list[Entry] = []
        self._progress = progress
        self._findings: dict[str, list[Finding]] = {}

    @property
    def _job_id(self) -> bytes:
        return bytes.fromhex(self.job.id)

    # Records

    async def check_head(self) -> Step:
        height = await self.network.head()
        validators = self.network.checkpoint.validators
        sentence = (
            f"height {height} of epoch {validators.epoch}: {validators.quorum} of {validators.n} validators signed its"
            f" state, and {validators.f + 1} nodes prove it"
        )
        return Step(HEAD, Verdict.OK, sentence)

    async def check_records(self) -> Step:
        self.job = await self.network.job(self._name)
        self.recordings = Recordings(self.network, self.job, self.number, self._progress)
        rules, current = self.job.rules, await self.recordings.ended(self.number)
        record: Job = await self.job.status()
        self.current, self._bases = current, {current.number: current.base}
        outcome = "closed" if current.phase == Phase.CLOSED else f"failed, {current.code}"
        sentence = f"job {self.job.name} {self.job.id[:16]}, its rules and round {self.number} ({outcome}) are proven"
        return judged(RECORDS, sentence, checks.check_records(record, rules, current))

    async def check_history(self) -> Step:
        self.history = await self.recordings.history(self.number)
        made_by = self.history.made_by
        origin = f"the model of round {made_by}" if made_by else "the job's initial model"
        return judged(HISTORY, f"it began with {origin}", checks.check_history(self.current, self.history))

    # The log

    async def check_log(self) -> Step:
        self._entries = await self.recordings.log(self.current)
        root = self.current.updates.root().hex()
        return Step(LOG, Verdict.OK, f"{_count(len(self._entries), 'entry', 'entries')} under the root {root}")

    async def check_transactions(self) -> Step:
        """Of each entry all that can be said without its blob. Findings of other steps are kept for them."""
        self._findings = {name: [] for name in (TRANSACTIONS, SIGNATURES, WEIGHTS, PAYLOADS)}
        spool, rotated, total = Spool(self.recordings.directory), 0, len(self._entries)
        for position, entry in enumerate(self._entries):
            signed = await self._signed(position, entry)
            if signed is None:
                continue
            base = await self._base_of(entry.round)
            await asyncio.to_thread(self._look_at, signed, base, spool)
            if not checks.is_first_key(signed):
                rotated += not await self._is_key_of(signed)
            self._progress("updates", position + 1, total)
        found = self._findings[TRANSACTIONS]
        found += checks.check_once(self.log.signed)
        self._findings[WEIGHTS] += checks.check_sums(self.log.signed, self.current, len(self.job.rules.metrics))
        if rotated:
            whose = _count(rotated, "member has", "members have")
            self.rests.append(f"that keys spoke for their members then: {whose} rotated theirs since")
        return judged(TRANSACTIONS, "each is in its batch and says what the log says", found)

    async def _signed(self, position: int, entry: Entry) -> Signed | None:
        data, place = await self.recordings.transaction(entry), checks.where(position, entry.member)
        if data is None:
            found = Finding(f"{place}: batch", f"a transaction {entry.index}", "none")
            self._findings[TRANSACTIONS].append(found)
            return None
        try:
            return checks.read_signed(position, entry, data, self.network.genesis.params)
        except Refused as refused:
            self._findings[TRANSACTIONS].append(Finding(f"{place}: transaction", "an update", str(refused)))
            return None

    async def _base_of(self, number: int) -> bytes:
        """What the round began with that an update answers: another one only in a job without rounds."""
        oldest = self.number - len(self.job.rules.discounts)
        if number not in self._bases and oldest < number < self.number:
            self._bases[number] = (await self.recordings.round(number)).base
        return self._bases.get(number, b"")

    def _look_at(self, signed: Signed, base: bytes, spool: Spool) -> None:
        rules, current = self.job.rules, self.current
        chain_id = self.network.checkpoint.chain_id
        found = self._findings
        found[TRANSACTIONS] += checks.check_transaction(signed, chain_id, self._job_id, rules, current, base)
        found[SIGNATURES] += checks.check_signature(signed)
        found[WEIGHTS] += checks.check_weight(signed, rules, current)
        if signed.body.payload:
            self._take_inline(signed, spool)
            signed = replace(signed, tx=replace(signed.tx, body=b""), body=replace(signed.body, payload=b""))
        self.log.signed.append(signed)

    def _take_inline(self, signed: Signed, spool: Spool) -> None:
        try:
            checks.demand_of(signed, self.job.rules, self.network.genesis.params)
        except Refused as refused:
            self._refused_payload(signed, refused)
        self.log.payloads[signed.position] = partial(spool.part, *spool.put(signed.body.payload))

    def _refused_payload(self, signed: Signed, refused: Refused) -> None:
        found = Finding(checks.where(signed.position, signed.entry.member), "an update of this job", str(refused))
        self._findings[PAYLOADS].append(found)

    async def _is_key_of(self, signed: Signed) -> bool:
        account = await self.network.record(Account, account_key(signed.entry.member))
        return account is not None and account.key == signed.tx.key

    async def check_signatures(self) -> Step:
        return judged(SIGNATURES, "each is signed by its member's key", self._findings[SIGNATURES])

    async def check_weights(self) -> Step:
        rules = self.job.rules
        if rules.organisation_cap:
            self.rests.append("how a cap was divided among an organisation's members in the cohort")
        if rules.weights == DATASET:
            self.rests.append("how many examples each member's data set said to hold")
        how = f"{rules.weights}, cap {rules.cap}" + (", by age" if rules.discounts else "")
        sentence = f"each follows from the rules ({how}); {self.current.weight} in all, as the round's record has it"
        return judged(WEIGHTS, sentence, self._findings[WEIGHTS])

    # Blobs

    async def check_payloads(self) -> Step:
        """Fetches the blobs. Each payload has been compared with its CID then, and its header and values are good."""
        missing: list[tuple[Signed, QuorateError]] = []
        waiting = [each for each in self.log.signed if each.position not in self.log.payloads]

        async def lane() -> None:
            while waiting:
                signed = waiting.pop()
                try:
                    await self._fetch_payload(signed)
                except Unverified as error:
                    where = checks.where(signed.position, signed.entry.member)
                    self._findings[PAYLOADS].append(Finding(where, "the bytes that its CID names", error.what))
                except (Unreachable, RefusedByChain) as error:
                    missing.append((signed, error))

        await at_once(lane() for _ in range(_BLOBS_AT_ONCE))
        found = self._findings[PAYLOADS]
        if missing and not found:
            raise _unavailable(f"{len(missing)} of {len(self.log.signed)} updates", missing[0][1])
        return judged(PAYLOADS, "each hashes to its CID, and its header and values are those of an update", found)

    async def _fetch_payload(self, signed: Signed) -> None:
        rules, params = self.job.rules, self.network.genesis.params
        view = await self.recordings.blob(signed.entry.cid)
        self.log.payloads[signed.position] = lambda: view
        try:
            demand = checks.demand_of(signed, rules, params)
            if demand is not None:
                await asyncio.to_thread(check_blob, demand, view)
        except Refused as refused:
            self._refused_payload(signed, refused)

    async def check_base(self) -> Step:
        self.base = await self._kept("the model that the round began with", self.recordings.model(self.current.base))
        try:
            check_model_frame(model_form(self.job.rules.schema), self.base)
        except Refused as refused:
            return judged(BASE, "", [Finding("base", "a model of this job", str(refused))])
        return Step(BASE, Verdict.OK, f"{len(self.base)} bytes hash to the base's CID")

    async def check_moments(self) -> Step:
        if not self.history.moments:
            return Step(MOMENTS, Verdict.OK, "none: no round has left any")
        cid = self.history.moments
        self.moments = await self._kept("the optimiser's state before the round", self.recordings.blob(cid))
        return Step(MOMENTS, Verdict.OK, f"{len(self.moments)} bytes hash to the CID of the optimiser's state")

    async def check_record(self) -> Step:
        current = self.current
        data = bytes(await self._kept("the closing record", self.recordings.blob(current.record)))
        try:
            self.record = decode(ClosingRecord, data, MAX_CLOSING_BYTES)
        except CodecError as error:
            return judged(RECORD, "", [Finding("closing record", "one that can be read", str(error))])
        weights = [each.weight for each in self._entries]
        found = checks.check_closing(self.record, self._job_id, self.job.rules, current, weights)
        return judged(RECORD, "the closing record says what the state and the log say", found)

    async def _kept(self, what: str, fetching: Awaitable[memoryview]) -> memoryview:
        try:
            return await fetching
        except (Unreachable, RefusedByChain) as error:
            raise _unavailable(what, error) from None

    @property
    def is_whole(self) -> bool:
        """Whether the payload of every entry was brought."""
        return len(self.log.payloads) == len(self._entries)

    def recorded(self) -> Recorded:
        """Once all of it was brought."""
        contributions = self.log.contributions()
        return Recorded(self._job_id, self.job.rules, self.current, contributions, self.base, self.moments)


def _unavailable(what: str, error: QuorateError) -> QuorateError:
    if error.code == "BLOB_NOT_YOURS":
        return RefusedByChain(
            error.code,
            f"{what} may be read by their member, by auditors and by validators' operators, and not by this account.",
            "Run it with the key of one of those.",
        )
    if error.code == "UNKNOWN_BLOB":
        return Unreachable("NOT_KEPT", f"No node that was asked has {what} for this account.", _ARCHIVE)
    return error


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
