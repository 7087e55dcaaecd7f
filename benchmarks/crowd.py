"""One round of many members, who are all in one process: one session for all, one vector of values behind all updates.

Each submits one update: inline if it may be, else as a blob that is given to a validator first. Member i's update is
the values from i on, so no two are alike and none is kept.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accounts import Account, ruled, rules_of, some_values
from benchmarks.child import Child
from benchmarks.probes import create, join
from benchmarks.submitting import Submitting
from chain.cid import raw_cid
from chain.genesis import Params
from chain.unixfs import manifest_cid
from cli.localnets import LocalNetwork
from fl.blobs import BlobKind
from fl.client.nodes import Nodes
from fl.client.transfer.blobfile import Source
from fl.client.transfer.doors import Doors, Signer
from fl.client.transfer.upload import Upload
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of

CROWD = "all members"
INLINE_BYTES = Params().inline_bytes
_PREPARED_S = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`settings` of the rule, as JSON."""

    directory: Path
    name: str
    members: int
    parameters: int
    encoding: str
    rule: str = "fedavg"
    settings: str = "{}"
    at_once: int = 8

    @property
    def rules(self) -> JobRules:
        made = rules_of(self.name, self.parameters, self.members, encoding=self.encoding)
        return ruled(made, self.rule, json.loads(self.settings))


class _Members:
    def __init__(self, plan: Plan, net: LocalNetwork, submitting: Submitting) -> None:
        self._plan = plan
        self._net = net
        self._chain_id = bytes.fromhex(net.chain_id)
        self._submitting = submitting
        self._rules = plan.rules
        self._form = form_of(self._rules, 0)
        self._accounts = [Account.of(net, name) for name in net.trainers[: plan.members]]
        self._nodes = Nodes([(each.name, each.rpc) for each in net.members.values()])
        self._doors = Doors(self._nodes)
        self._values = some_values(plan.parameters + plan.members, seed=7)

    async def create(self) -> str:
        self._job = await create(self._net, self._submitting, self._rules)
        return self._job

    async def submit_all(self) -> None:
        """One update each, so many under way at a time."""
        await join(self._submitting, self._job, self._rules, self._accounts)
        waiting = list(reversed(range(len(self._accounts))))

        async def lane() -> None:
            while waiting:
                await self._submit(waiting.pop())

        try:
            await asyncio.gather(*(lane() for _ in range(self._plan.at_once)))
        finally:
            await self._nodes.close()

    async def _submit(self, index: int) -> None:
        account, job = self._accounts[index], bytes.fromhex(self._job)
        payload = await asyncio.to_thread(self._payload, account, index)
        if len(payload) <= INLINE_BYTES:
            cid, inline = raw_cid(payload), payload
        else:
            cid, inline = await self._give(account, index, payload), b""
        body = SubmitUpdate(job, 1, self._rules.initial, 1, (), 0, cid, inline)
        await self._submitting.executed(index, [account.sign(body)])

    def _payload(self, account: Account, index: int) -> bytes:
        values: NDArray[np.float32] = self._values[index : index + self._plan.parameters]
        return encode_update(self._form, Place(bytes.fromhex(self._job), 1, account.id), {"w": values})

    async def _give(self, account: Account, index: int, payload: bytes) -> bytes:
        """The update's CID, once the validator that takes the transaction has the blob."""
        signer = Signer(self._chain_id, account.id, account.key)
        with Source(payload) as source:
            manifest = await asyncio.to_thread(source.manifest)
            cid = manifest_cid(manifest)
            permit = signer.put(cid, manifest.size_bytes, BlobKind.UPDATE)
            upload = Upload(self._doors, source, cid, manifest, permit)
            # Shared among the validators evenly: by the order that it names them in, not by who answered last.
            nodes = sorted(self._nodes.in_order(), key=lambda node: node.name)
            await upload.to(nodes[index % len(nodes)])
        return cid


async def _perform(told: Connection, plan: Plan) -> None:
    net = LocalNetwork.open(plan.directory)
    async with Submitting(net) as submitting:
        members = _Members(plan, net, submitting)
        told.send(await members.create())
        await asyncio.to_thread(told.recv)
        await members.submit_all()
        told.send("over")


def _run(told: Connection, plan: Plan) -> None:
    asyncio.run(_perform(told, plan))


class Crowd(Child):
    """From the side of whoever measures. It creates the job, and joins it when it is told to go."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(CROWD, _run, plan)
        self.job = ""

    def __enter__(self) -> Crowd:
        super().__enter__()
        try:
            self.job = self.hear(_PREPARED_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def go(self) -> None:
        self.tell("go")
