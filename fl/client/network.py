"""A network as a client has it: verified reads, and transactions of one account. The async face."""

from __future__ import annotations

import asyncio
import logging
import os
import string
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from chain.codec import encode
from chain.genesis import Genesis
from chain.keys import SigningKey
from chain.light import Checkpoint
from chain.transaction import Transaction, account_id
from fl.client.courier import Courier, NonceTaken
from fl.client.datasets import AsyncDatasets
from fl.client.errors import BadFile, BadInput, PolicyForbids, RefusedByChain, Unreachable, Unverified
from fl.client.home import Home, Pending, StoredReceipt, default_root, read_receipt
from fl.client.job import AsyncJob
from fl.client.jobdraft import Arrays, Draft, draft_job
from fl.client.networkfile import NetworkFile, read_network
from fl.client.networks import Networks
from fl.client.nodes import Nodes
from fl.client.reader import Proven, Reader
from fl.client.receipt import Receipt
from fl.client.receiptfile import check_receipt_file, receipt_file, write_receipt_file
from fl.client.sender import VALID_FOR_MS, Sender
from fl.client.signing import check_bytes, nonce_taken, parsed_account, parsed_id, read_signed, signing_key
from fl.client.site.policy import PolicyFile, policy_file
from fl.client.transfer.blobs import AsyncBlobs
from fl.client.transfer.doors import Signer
from fl.errors import PendingJob
from fl.evaluation import SubmitEvaluation
from fl.execution import OK
from fl.jobs import CreateJob, JoinJob
from fl.members import is_name
from fl.records import Account, Dataset, JobRules, Member, Named, Role
from fl.records import Receipt as ReceiptRecord
from fl.rounds import CheckIn, SubmitUpdate
from fl.state import account_key, dataset_key, job_name_key, member_key, rules_key
from fl.transactions import read, read_body

T = TypeVar("T")

log = logging.getLogger("quorate.client")

PATIENCE_S = 30.0
_LOOK_AGAIN_S = 2.0
"""At a policy that keeps something back."""


_SEE_JOBS = "quorate job list tells which there are."


class AsyncNetwork:
    """Made by `connect_async`; an async context manager."""

    def __init__(self, file: NetworkFile, nodes: Nodes, reader: Reader, home: Home) -> None:
        self._nodes = nodes
        self._home = home
        self._sender: Sender | None = None
        self.blobs: AsyncBlobs
        self.policy: PolicyFile
        """What this site admits: it has the last word on whatever takes part in a job."""
        self._rules: dict[bytes, JobRules] = {}
        self.file = file
        self.reader = reader
        self.datasets = AsyncDatasets(self)
        self.genesis: Genesis

    async def __aenter__(self) -> AsyncNetwork:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._home.keep_head(self.reader.head)
        await self._nodes.close()

    # Who and where

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def chain_id(self) -> str:
        return self.file.checkpoint.chain_id.hex()

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest validator set that the network file leads to."""
        return self.reader.checkpoint

    @property
    def home(self) -> Path:
        """Where receipts and whatever is in flight are kept."""
        return self._home.directory

    @property
    def nodes(self) -> Nodes:
        return self._nodes

    @property
    def kept(self) -> Home:
        """What is on disk for the account."""
        return self._home

    @property
    def account(self) -> str:
        return self.sender.account.hex()

    @property
    def sender(self) -> Sender:
        if self._sender is None:
            raise BadInput("NO_KEY", "This needs an account.", "Name a key: --key FILE, or connect(file, key=FILE).")
        return self._sender

    # Reading

    async def head(self) -> int:
        """The newest height that f + 1 nodes prove."""
        return await self.reader.compare_heads()

    async def state(self, key: bytes) -> Proven:
        """A row of the state, proven."""
        return await self.reader.state(key)

    async def record(self, cls: type[T], key: bytes) -> T | None:
        """A row of the state, proven and decoded."""
        return await self.reader.record(cls, key)

    async def member(self, account: str | None = None) -> Member | None:
        return await self.record(Member, member_key(parsed_account(account or self.account)))

    async def job(self, name_or_id: str) -> AsyncJob:
        """The newest job of this name, or the one with this id."""
        return await self._job(await self._job_id(name_or_id))

    async def _job(self, job: bytes) -> AsyncJob:
        rules = self._rules.get(job) or await self.record(JobRules, rules_key(job))
        if rules is None:
            raise RefusedByChain("UNKNOWN_JOB", f"No job has the id {job.hex()}.", _SEE_JOBS)
        self._rules[job] = rules
        return AsyncJob(self, job, rules)

    async def _job_id(self, name_or_id: str) -> bytes:
        if len(name_or_id) == 64 and not set(name_or_id) - set(string.hexdigits):
            return bytes.fromhex(name_or_id)
        named = await self.record(Named, job_name_key(name_or_id)) if is_name(name_or_id) else None
        if named is None:
            raise RefusedByChain("UNKNOWN_JOB", f"No job is named {name_or_id!r} on {self.name}.", _SEE_JOBS)
        return named.holder

    # Writing

    async def send(
        self,
        body: object,
        *,
        allow: Iterable[str] = (),
        valid_for_ms: int = VALID_FOR_MS,
        patience_s: float | None = None,
    ) -> Receipt:
        """Sign and send a transaction with this body, and wait until its fate is proven. Raises RefusedByChain
        when that is a refusal whose code is not in `allow`, Unreachable when no node takes it in time; then it stays
        in the outbox. What takes part in a job is held to the site's policy before: PolicyForbids."""
        await self._admit(body)
        stored = await self.sender.send(body, valid_for_ms, self.nodes.patience_s if patience_s is None else patience_s)
        return self._told(stored, allow)

    @staticmethod
    def _told(stored: StoredReceipt, allow: Iterable[str]) -> Receipt:
        receipt = Receipt.of(stored)
        if receipt.status != OK and receipt.status not in set(allow):
            raise RefusedByChain.of(receipt.status)
        return receipt

    def _courier(self, home: Home) -> Courier:
        return Courier(self._nodes, self.reader, home, self.blobs)

    async def _admit(self, body: object) -> None:
        if isinstance(body, JoinJob):
            await (await self._job(body.job)).admit(body.role)
            if body.dataset:
                found = await self.record(Dataset, dataset_key(body.dataset))
                self.policy.read().check_dataset(found.name if found is not None else "", body.dataset.hex())
        elif isinstance(body, CheckIn):
            await (await self._job(body.job)).admit(Role.TRAINER.value)
        elif isinstance(body, SubmitUpdate | SubmitEvaluation):
            role = Role.TRAINER if isinstance(body, SubmitUpdate) else Role.EVALUATOR
            await self._admit_answer(await self._job(body.job), role.value)

    async def _admit_answer(self, job: AsyncJob, role: str) -> None:
        """Returns once the site's hours let it be sent."""
        told = False
        while (kept_s := (await job.admit(role)).holds_back_s(self.policy.now())) > 0:
            if not told:
                log.warning("%s: the policy keeps the answer until %s", job.name, self.policy.shown(kept_s))
                told = True
            await asyncio.sleep(min(kept_s, _LOOK_AGAIN_S))

    async def send_signed(
        self,
        signed: Pending | str | os.PathLike[str],
        *,
        allow: Iterable[str] = (),
        patience_s: float | None = None,
    ) -> Receipt:
        """Send a transaction that was signed elsewhere (`sign_offline`), whoever signed it; no key is needed here. Its
        receipt is kept in the home of its account. Otherwise as `send`."""
        pending = signed if isinstance(signed, Pending) else read_signed(Path(signed))
        await self._check_signed(pending)
        account = pending.tx.sender
        own = self._sender if self._sender is not None and self._sender.account == account else None
        kept = self._home if own is not None else self._home.of(account)
        if not await asyncio.to_thread(kept.keep, pending) and not kept.holds(pending):
            raise nonce_taken(kept, pending)
        courier = own or self._courier(kept)
        try:
            stored = await courier.settle(pending, self.nodes.patience_s if patience_s is None else patience_s)
        except NonceTaken:
            raise RefusedByChain(
                "NONCE_USED",
                f"The nonce {pending.tx.nonce} went to another transaction of the account.",
                f"Sign it again with the next one: --nonce {await self.next_nonce(account.hex())}",
            ) from None
        return self._told(stored, allow)

    async def _check_signed(self, pending: Pending) -> None:
        chain_id = self.file.checkpoint.chain_id
        while True:
            try:
                check_bytes(pending, chain_id, self.genesis.params, self._rules.get, own=False)
            except PendingJob as lacking:
                await self._job(lacking.job)
                continue
            return await self._admit(read_body(pending.tx)[1])

    async def next_nonce(self, account: str | None = None) -> int:
        """The lowest that no transaction of the account was executed under, proven."""
        who = parsed_account(account or self.account)
        known = await self.record(Account, account_key(who))
        return known.floor if known is not None else 0

    async def create_job(self, name: str, model: Arrays, **rules: Any) -> AsyncJob:
        """Create a job that starts from this model; `fl.client.jobdraft.draft_job` lists the rules."""
        return await self.create_drafted(await asyncio.to_thread(draft_job, name, model, **rules))

    async def create_drafted(self, draft: Draft) -> AsyncJob:
        receipt = await self.send(await asyncio.to_thread(self._creation, draft))
        return await self._job(bytes.fromhex(receipt.job))

    def _creation(self, draft: Draft) -> CreateJob:
        """A model that is too large to be carried is in the outbox from here on."""
        if len(draft.model) <= self.genesis.params.inline_bytes:
            return CreateJob(draft.rules, draft.model)
        self.sender.keep_blob((draft.model,))
        return CreateJob(draft.rules, b"")

    def pending(self) -> list[Pending]:
        """Transactions whose fate is not yet proven."""
        return list(self._home.pending())

    async def resume(self) -> list[Receipt]:
        """Settle what an earlier run of this account left in flight. What the site's policy does not admit any more
        stays where it is."""
        found = await asyncio.gather(*map(self._resume_one, self.pending()))
        return [Receipt.of(each) for each in found if each is not None]

    async def _resume_one(self, pending: Pending) -> StoredReceipt | None:
        try:
            await self._admit(read_body(pending.tx)[1])
        except PolicyForbids as error:
            log.warning("transaction %s, kept from an earlier run, is not sent: %s", pending.id.hex()[:16], error)
            return None
        return await self.sender.resume_one(pending)

    # Receipts

    def receipts(self) -> list[Receipt]:
        return [Receipt.of(each) for each in self._home.receipts()]

    def verify_receipt(self, path: str | os.PathLike[str]) -> Receipt:
        """A receipt file, checked against the network file alone; raises Unverified, whose code names what is wrong."""
        stored = read_receipt(Path(path))
        check_receipt_file(stored.file, self.file.checkpoint)
        return Receipt.of(stored)

    async def fetch_receipt(self, tx: str, path: str | os.PathLike[str]) -> Receipt | None:
        """The receipt of any transaction, by its id, as a file that begins at this network file's epoch; None if no
        node has one."""
        identity = parsed_id(tx)
        found = await self.reader.receipt_anywhere(identity)
        if found is None:
            return None
        entry, proof = found
        file = receipt_file(await self._transaction(identity, entry), proof, self.reader.hand_overs)
        check_receipt_file(file, self.file.checkpoint)
        await asyncio.to_thread(write_receipt_file, Path(path), file)
        return Receipt.of(read_receipt(Path(path)))

    async def _transaction(self, identity: bytes, entry: ReceiptRecord) -> Transaction:
        """From the receipt that is kept here, else from its batch, while nodes keep that."""
        kept = self._home.receipt_path(identity)
        if kept.exists():
            return read_receipt(kept).file.transaction
        try:
            transactions = await self.reader.batch(entry.batch, self.nodes.patience_s)
        except Unreachable as error:
            raise Unreachable(
                "TRANSACTION_GONE",
                f"Its receipt is proven, and no node has the transaction itself any more: {error.what}",
                "Ask its sender for the receipt file: the sender's home keeps it.",
            ) from None
        return read(transactions[entry.index], self.genesis.params).tx


async def connect_async(
    network: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | SigningKey | None = None,
    *,
    passphrase: str | bytes | None = None,
    account: str | None = None,
    home: str | os.PathLike[str] | None = None,
    patience_s: float = PATIENCE_S,
    policy: str | os.PathLike[str] | None = None,
) -> AsyncNetwork:
    """Connect to the network of this file, or of this name, in the name of this key.

    Names are those of `quorate network add`; a network that is named brings the key along which was added with it,
    unless another one is given. Without a network it is the usual one (`quorate network use`), else consortium.toml.
    `account` is needed once the key has been rotated: an account is named after its first key. `home` is where
    receipts and transactions in flight are kept (default: QUORATE_HOME or ~/.quorate). `patience_s` is how long a
    question is repeated while no node answers it. `policy` is the site's policy file (default: QUORATE_POLICY, or
    policy.toml in the home if it is there): no job can override it.
    """
    root = Path(home) if home is not None else default_root()
    chosen = Networks(root).choose(network)
    file = read_network(chosen.file)
    signing = signing_key(key if key is not None else chosen.key, passphrase)
    who = parsed_account(account) if account is not None else account_id(signing.public) if signing else None
    kept = Home(root, file.checkpoint.chain_id, who)
    addresses = [(each.name, each.rpc) for each in file.validators.members if each.rpc]
    if not addresses:
        raise BadFile("NO_ADDRESSES", f"{chosen.file} names no node that answers clients.", "Ask for one that does.")
    # Clients of one network spread over its nodes.
    nodes = Nodes(addresses, int.from_bytes((who or os.urandom(4))[:4], "big"), patience_s)
    known = kept.hand_overs(file.validators.epoch)
    reader = Reader(nodes, file.checkpoint, kept.head(), known, kept.keep_hand_over)
    connected = AsyncNetwork(file, nodes, reader, kept)
    connected.policy = policy_file(policy, root)
    try:
        if policy is not None:
            connected.policy.read()
        connected.genesis = await _genesis(file, reader, kept)
    except BaseException:
        await nodes.close()
        raise
    signer = Signer(file.checkpoint.chain_id, who, signing) if signing is not None and who is not None else None
    connected.blobs = AsyncBlobs(nodes, kept, signer, lambda: reader.checkpoint.validators.f + 1)
    if signer is not None:
        connected._sender = Sender(
            connected._courier(kept), kept, signer, connected.genesis.params, connected._rules.get, connected.blobs
        )
    return connected


async def _genesis(file: NetworkFile, reader: Reader, home: Home) -> Genesis:
    """Known by its hash, which is the chain's id."""
    genesis = home.genesis()
    if genesis is None or genesis.chain_id != file.checkpoint.chain_id:
        genesis = await reader.genesis()
        home.keep_genesis(genesis)
    first = genesis.validator_set
    if file.validators.epoch == first.epoch and encode(file.validators) != encode(first):
        raise Unverified(
            "WRONG_VALIDATORS",
            "The network file lists other validators than the genesis of its own chain.",
            "Ask a member for the file again, and do not use this one.",
        )
    return genesis
