"""The plain face: the same network, job and task for code that awaits nothing.

Every call runs on one event loop in a thread of its own, so it works in a script, in a notebook and inside a running
event loop alike.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from chain.keys import SigningKey
from chain.light import Checkpoint
from chain.unixfs import Buffer
from fl.client.datasets import AsyncDatasets, Registered
from fl.client.errors import BadInput
from fl.client.evaluations import AsyncEvaluation
from fl.client.home import Pending
from fl.client.job import AsyncJob
from fl.client.jobdraft import Arrays, ConfigValue, Draft
from fl.client.network import PATIENCE_S, AsyncNetwork, connect_async
from fl.client.reader import Proven
from fl.client.receipt import Receipt
from fl.client.report import RoundReport
from fl.client.site.policy import PolicyFile
from fl.client.tasks import AsyncTask
from fl.client.trackers import Tracker, newest_told, tell_round
from fl.client.transfer.blobs import AsyncBlobs, BlobReceipt, BlobStat, Progress, quiet
from fl.client.transfer.download import Fetched
from fl.records import Dataset, JobRules, Member, Round
from fl.records import Evaluation as EvaluationRecord
from fl.records import Job as JobRecord

T = TypeVar("T")
U = TypeVar("U")


class LoopThread:
    """An event loop in a daemon thread: a program that ends does not wait for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quorate", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self.closed:
            work.close()
            raise BadInput("CLOSED", "The network was closed.", "Connect again.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # The caller was interrupted: what it asked for is not wanted any more.
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        if self.closed:
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Whatever an abandoned loop over tasks has left behind."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Task:
    """A round to answer. `model` maps tensor names to arrays of your own; change them as you like."""

    def __init__(self, loop: LoopThread, task: AsyncTask) -> None:
        self._loop = loop
        self._task = task

    @property
    def round(self) -> int:
        """The number of the round that is answered."""
        return self._task.round

    @property
    def model(self) -> dict[str, NDArray[Any]]:
        """The round's model, verified."""
        return self._task.model

    @property
    def model_cid(self) -> str:
        """What the model is known by."""
        return self._task.model_cid

    @property
    def config(self) -> dict[str, ConfigValue]:
        """What the job's creator gives the clients in this round: learning rate, epochs, …"""
        return self._task.config

    @property
    def receipt(self) -> Receipt | None:
        """Of this round's submission, once there is one."""
        return self._task.receipt

    def submit(
        self,
        *,
        weights: Arrays | None = None,
        delta: Arrays | None = None,
        examples: int,
        metrics: Mapping[str, float] | None = None,
        group: str | None = None,
        feedback: bool = True,
    ) -> Receipt:
        """Submit the trained `weights`, or their difference to the model as `delta`; returns the proven receipt. In a
        job that names groups of tensors, an update changes the `group` that it names and nothing else. With a lossy
        encoding, what it left out of earlier updates is added to this one, unless `feedback` is false.

        The receipt's status is "ok", or LATE when the round closed meanwhile, JOB_CLOSED when the job ended with it,
        TOO_STALE when a job without rounds has moved too far, DUPLICATE when this account has answered already. Every
        other refusal raises RefusedByChain."""
        return self._loop.run(
            self._task.submit(
                weights=weights, delta=delta, examples=examples, metrics=metrics, group=group, feedback=feedback
            )
        )


class Evaluation:
    """A model to measure. `model` maps tensor names to arrays of your own."""

    def __init__(self, loop: LoopThread, asked: AsyncEvaluation) -> None:
        self._loop = loop
        self._asked = asked

    @property
    def round(self) -> int:
        """The one that made the model."""
        return self._asked.round

    @property
    def model(self) -> dict[str, NDArray[Any]]:
        """Verified."""
        return self._asked.model

    @property
    def model_cid(self) -> str:
        """What the model is known by."""
        return self._asked.model_cid

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the job wants measured, by name."""
        return self._asked.metrics

    @property
    def config(self) -> dict[str, ConfigValue]:
        """What the job's creator gives the clients in this round."""
        return self._asked.config

    @property
    def receipt(self) -> Receipt | None:
        """Of the answer, once there is one."""
        return self._asked.receipt

    def submit(self, *, metrics: Mapping[str, float], examples: int) -> Receipt:
        """Submit what was measured, and on how many examples; returns the proven receipt.

        The receipt's status is "ok", or LATE when the evaluation ended meanwhile, or DUPLICATE when this account has
        answered it already. Every other refusal raises RefusedByChain."""
        return self._loop.run(self._asked.submit(metrics=metrics, examples=examples))


class Job:
    """Made by `Network.job`. `rules` are proven, and never change."""

    def __init__(self, loop: LoopThread, job: AsyncJob) -> None:
        self._loop = loop
        self._job = job

    @property
    def id(self) -> str:
        """In lower hex."""
        return self._job.id

    @property
    def name(self) -> str:
        """Of open jobs, no two have the same."""
        return self._job.name

    @property
    def account(self) -> str:
        """In whose name it is answered."""
        return self._job.network.account

    @property
    def directory(self) -> Path:
        """Where an app may keep what it wants to have in the next round."""
        return self._job.network.home / "apps" / self.id

    @property
    def rules(self) -> JobRules:
        """What its creator has laid down, as the chain holds it."""
        return self._job.rules

    @property
    def averaged(self) -> list[str]:
        """Names of the tensors that are trained together: `weights` holds them."""
        return self._job.averaged

    @property
    def rules_hash(self) -> str:
        """What a member accepts by joining."""
        return self._job.rules_hash

    def status(self) -> JobRecord:
        """The job's proven record."""
        return self._loop.run(self._job.status())

    def round(self, number: int) -> Round | None:
        """A round's proven record, None before it opens."""
        return self._loop.run(self._job.round(number))

    def evaluation(self, round: int) -> EvaluationRecord | None:
        """The proven record of what evaluators measured of this round's model; None if they were not asked."""
        return self._loop.run(self._job.evaluation(round))

    def reports(self, first: int = 1, last: int | None = None) -> list[RoundReport]:
        """Of the rounds from `first` to `last` that are over: what was reported and measured, proven."""
        return self._loop.run(self._job.reports(first, last))

    def model(self, round: int | None = None) -> dict[str, NDArray[Any]]:
        """The newest model, or the one that a round made (0: the initial one), as arrays."""
        return self._loop.run(self._job.model(round))

    def model_cid(self, round: int | None = None) -> str:
        return self._loop.run(self._job.model_cid(round))

    def model_file(self, round: int | None = None) -> tuple[str, Path]:
        """CID and verified safetensors file of a model. The file is the home's, where the last few are kept: copy it if
        you want to have it longer."""
        return self._loop.run(self._job.model_file(round))

    def model_bytes(self, round: int | None = None) -> tuple[str, bytes]:
        """The same as bytes: for models that fit into memory several times."""
        return self._loop.run(self._job.model_bytes(round))

    def join(self, accept: str | None = None, *, role: str = "trainer", dataset: str | None = None) -> Receipt | None:
        """Join under the job's rules, as a "trainer" or as an "evaluator"; None if that has been done. With `accept`,
        the hash of the rules that were agreed on, joining is refused under any others. `dataset` is the own one that is
        trained on, by name or id: a job whose updates weigh by data sets wants it."""
        return self._loop.run(self._job.join(accept, role=role, dataset=dataset))

    def leave(self, *, role: str = "trainer") -> Receipt:
        """Be asked no more, from the next round on. What was submitted stays."""
        return self._loop.run(self._job.leave(role=role))

    def pause(self) -> Receipt:
        """Let the open round end and open no other until the job is resumed; its creator and registrars may."""
        return self._loop.run(self._job.pause())

    def resume(self) -> Receipt:
        """Go on with a job that was paused, by hand or by rounds that failed."""
        return self._loop.run(self._job.resume())

    def stop(self) -> Receipt:
        """End the job for everyone; its creator and registrars may."""
        return self._loop.run(self._job.stop())

    def concluded(self, after: int = 0) -> list[RoundReport]:
        """Of the rounds after this one, as far as nothing more is to come of them: they are over, and measured, if
        evaluators are asked."""
        return self._loop.run(self._job.concluded(after))

    def rounds(self, after: int = 0) -> Iterator[RoundReport]:
        """Each round after this one as it is concluded, until the job is over. Nodes that do not answer are waited
        for."""
        return self._asked(self._job.rounds(after), lambda _, report: report)

    def follow(self, *trackers: Tracker) -> None:
        """Tell trackers of each round that they do not know of yet, until the job is over; `fl.client.trackers` has
        them."""
        for report in self.rounds(newest_told(trackers)):
            tell_round(trackers, report)

    def tasks(self) -> Iterator[Task]:
        """Each round that this account may still answer, until the job is over.

        Updates that an earlier run left in flight are sent again first, byte for byte. A round that was answered is
        skipped, so the loop can be started anew at any time. Nodes that do not answer are waited for."""
        return self._asked(self._job.tasks(), Task)

    def evaluations(self) -> Iterator[Evaluation]:
        """Each model that this account is asked to measure and has not, until the job is over: as `tasks` for those
        who evaluate."""
        return self._asked(self._job.evaluations(), Evaluation)

    def _asked(self, found: AsyncGenerator[T, None], plain: Callable[[LoopThread, T], U]) -> Iterator[U]:
        try:
            while (each := self._loop.run(_next(found))) is not None:
                yield plain(self._loop, each)
        finally:
            if not self._loop.closed:
                self._loop.run(_ended(found))


class Blobs:
    """`network.blobs`: files that are named by what is in them, put to a node and got from any.

        receipt = network.blobs.put("weights.bin")  # a node has it durably until receipt.lease_until_ms
        network.blobs.get(receipt.cid, "copy.bin")  # from several nodes at once, every byte checked against the CID

    A CID is that of the file in IPFS (profile `unixfs-v1-2025`). Data sets and models are given to anyone who knows the
    CID; an update to its member, to auditors and to validators.
    """

    def __init__(self, loop: LoopThread, blobs: AsyncBlobs) -> None:
        self._loop = loop
        self._blobs = blobs

    def put(
        self,
        given: str | os.PathLike[str] | Buffer,
        kind: str = "dataset",
        *,
        progress: Progress = quiet,
        patience_s: float | None = None,
    ) -> BlobReceipt:
        """Give a file, or bytes, to a node; the next one takes over where one fails. Run again after a break, it sends
        what is missing."""
        return self._loop.run(self._blobs.put(given, kind, progress=progress, patience_s=patience_s))

    def get(
        self,
        cid: str,
        path: str | os.PathLike[str] | None = None,
        *,
        progress: Progress = quiet,
        patience_s: float | None = None,
    ) -> Fetched:
        """A blob as a file: at `path`, or in this directory under its CID. What an earlier attempt left is kept as far
        as it is right, and the file appears under its name only when it is whole."""
        return self._loop.run(self._blobs.get(cid, path, progress=progress, patience_s=patience_s))

    def stat(self, cid: str) -> list[BlobStat]:
        """What each node that answers says of it."""
        return self._loop.run(self._blobs.stat(cid))

    def ls(self) -> list[dict[str, Any]]:
        """The blobs of the first node that lists its own."""
        return self._loop.run(_all(self._blobs.ls()))


class Datasets:
    """`network.datasets`: what members say of the data that they hold.

    network.datasets.register("trials-2026", file="trials.parquet", stored=True, licence="CC-BY-4.0")
    """

    def __init__(self, loop: LoopThread, datasets: AsyncDatasets) -> None:
        self._loop = loop
        self._datasets = datasets

    def register(
        self,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        cid: str | None = None,
        size_bytes: int = 0,
        examples: int = 0,
        stored: bool = False,
        schema: str = "",
        policy: str = "",
        licence: str = "",
        progress: Progress = quiet,
    ) -> Registered:
        """Tell the chain of a data set: of this file, of the one that the CID names, or of one that is not named at all
        (then `size_bytes` is what you say). `examples` is how many it holds, which updates may weigh by. With `stored`,
        the file is put to a node and the validators keep it; named by a CID, it has to be there already."""
        return self._loop.run(
            self._datasets.register(
                name,
                file=file,
                cid=cid,
                size_bytes=size_bytes,
                examples=examples,
                stored=stored,
                schema=schema,
                policy=policy,
                licence=licence,
                progress=progress,
            )
        )

    def find(self, name_or_id: str, owner: str | None = None) -> tuple[str, Dataset]:
        """The id and the proven entry of this owner's newest data set of this name (without an owner: one's own), or of
        the one with this id."""
        return self._loop.run(self._datasets.find(name_or_id, owner))

    def withdraw(self, name_or_id: str) -> Receipt:
        """The chain keeps its bytes no longer; the entry stays, marked as withdrawn."""
        return self._loop.run(self._datasets.withdraw(name_or_id))


async def _all(found: AsyncIterator[T]) -> list[T]:
    return [each async for each in found]


async def _next(found: AsyncGenerator[T, None]) -> T | None:
    return await anext(found, None)


async def _ended(found: AsyncGenerator[T, None]) -> None:
    await found.aclose()


class Network:
    """Made by `connect`; a context manager. What it reads is proven from the network file on."""

    def __init__(self, loop: LoopThread, network: AsyncNetwork) -> None:
        self._loop = loop
        self._network = network
        # Jobs and tasks outlive this object in many a script, so it is not closed when it is collected.
        atexit.register(self.close)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Happens by itself at the end of the program."""
        if not self._loop.closed:
            self._loop.run(self._network.close())
            self._loop.close()
        atexit.unregister(self.close)

    @property
    def name(self) -> str:
        """As its network file calls it."""
        return self._network.name

    @property
    def chain_id(self) -> str:
        """The hash of its genesis, in lower hex."""
        return self._network.chain_id

    @property
    def account(self) -> str:
        """The id of the key's account, in lower hex."""
        return self._network.account

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest validator set that the network file leads to."""
        return self._network.checkpoint

    @property
    def blobs(self) -> Blobs:
        """Files of any size, named by their CIDs."""
        return Blobs(self._loop, self._network.blobs)

    @property
    def datasets(self) -> Datasets:
        """What members say of their data."""
        return Datasets(self._loop, self._network.datasets)

    @property
    def policy(self) -> PolicyFile:
        """What this site admits; `read()` tells it as it is at this time."""
        return self._network.policy

    @property
    def home(self) -> Path:
        """Where receipts and whatever is in flight are kept."""
        return self._network.home

    def head(self) -> int:
        """The newest height that f + 1 nodes prove."""
        return self._loop.run(self._network.head())

    def state(self, key: bytes) -> Proven:
        """A row of the state, proven."""
        return self._loop.run(self._network.state(key))

    def member(self, account: str | None = None) -> Member | None:
        """A member's proven record; without an account, one's own."""
        return self._loop.run(self._network.member(account))

    def job(self, name_or_id: str) -> Job:
        """The newest job of this name, or the one with this id."""
        return Job(self._loop, self._loop.run(self._network.job(name_or_id)))

    def create_job(self, name: str, model: Arrays, **rules: Any) -> Job:
        """Create a job that starts from this model; `fl.client.jobdraft.draft_job` lists the rules."""
        return Job(self._loop, self._loop.run(self._network.create_job(name, model, **rules)))

    def create_drafted(self, draft: Draft) -> Job:
        """Create the job of a draft: what `draft_job` makes, or a job file."""
        return Job(self._loop, self._loop.run(self._network.create_drafted(draft)))

    def send(self, body: object) -> Receipt:
        """Sign and send any transaction, and wait until its fate is proven."""
        return self._loop.run(self._network.send(body))

    def send_signed(self, signed: Pending | str | os.PathLike[str]) -> Receipt:
        """Send a transaction that was signed elsewhere (`sign_offline`), whoever signed it; no key is needed here. Its
        receipt is kept in the home of its account. Otherwise as `send`."""
        return self._loop.run(self._network.send_signed(signed))

    def next_nonce(self, account: str | None = None) -> int:
        """The lowest that no transaction of the account was executed under, proven."""
        return self._loop.run(self._network.next_nonce(account))

    def resume(self) -> list[Receipt]:
        """Settle what an earlier run of this account left in flight."""
        return self._loop.run(self._network.resume())

    def receipts(self) -> list[Receipt]:
        """All receipts that are kept on disk."""
        return self._network.receipts()

    def verify_receipt(self, path: str | os.PathLike[str]) -> Receipt:
        """A receipt file, checked against the network file alone; raises Unverified, whose code names what is wrong."""
        return self._network.verify_receipt(path)

    def fetch_receipt(self, tx: str, path: str | os.PathLike[str]) -> Receipt | None:
        """The receipt of any transaction, by its id, as a file that begins at this network file's epoch; None if no
        node has one."""
        return self._loop.run(self._network.fetch_receipt(tx, path))


def connect(
    network: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | SigningKey | None = None,
    *,
    passphrase: str | bytes | None = None,
    account: str | None = None,
    home: str | os.PathLike[str] | None = None,
    patience_s: float = PATIENCE_S,
    policy: str | os.PathLike[str] | None = None,
) -> Network:
    """Connect to the network of this file, or of this name, in the name of this key; without a key, to read.

    Names are those of `quorate network add`; a network that is named brings the key along which was added with it,
    unless another one is given. Without a network it is the usual one (`quorate network use`), else consortium.toml.
    `account` is needed once the key has been rotated: an account is named after its first key. `home` is where
    receipts and transactions in flight are kept (default: QUORATE_HOME or ~/.quorate). `patience_s` is how long a
    question is repeated while no node answers it. `policy` is the site's policy file (default: QUORATE_POLICY, or
    policy.toml in the home if it is there): no job can override it.
    """
    loop = LoopThread()
    try:
        opened = connect_async(
            network, key, passphrase=passphrase, account=account, home=home, patience_s=patience_s, policy=policy
        )
        return Network(loop, loop.run(opened))
    except BaseException:
        loop.close()
        raise
