"""Many trainers in one process: keys made of numbers, one vector of values behind all updates, one session for all.

    python -m benchmarks.crowd NETWORK --job HEX --members 1000 --parameters 10000 --rule fedavg --encoding f32

They join the job, wait for its first round, and each submits one update: inline if it may be, else as a blob that is
given to a validator first. Member i's update is the values from i on, so no two are alike and none is kept.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import aiohttp
import numpy as np
from numpy.typing import NDArray

from benchmarks.small_updates import A_REQUEST, Load, Sender, rules_of
from chain.cid import raw_cid
from chain.genesis import Params
from chain.keys import SigningKey
from chain.unixfs import manifest_cid
from cli.http import Place as Door
from cli.http import ask
from cli.localnets import LocalNetwork
from fl.blobs import BlobKind
from fl.client.keyfile import load_key
from fl.client.nodes import Nodes
from fl.client.transfer.blobfile import Source
from fl.client.transfer.doors import Doors, Signer
from fl.client.transfer.upload import Upload
from fl.jobrules import rules_hash
from fl.jobs import JoinJob
from fl.members import RegisterMember
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.rules import rule_of
from fl.rules.rule import Settings, written_settings
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of

INLINE_BYTES = Params().inline_bytes
_LOOK_AGAIN_S = 0.05


def key_of(number: int) -> SigningKey:
    return SigningKey.from_seed(sha256(f"member {number} of the crowd".encode()).digest())


def senders(chain_id: bytes, numbers: Sequence[int]) -> list[Sender]:
    return [Sender(chain_id, key_of(number)) for number in numbers]


async def register(load: Load, net: LocalNetwork, numbers: Sequence[int]) -> None:
    registrar = Sender(bytes.fromhex(net.chain_id), load_key(net.key_file("registrar")))
    signed = [
        registrar.sign(RegisterMember(f"member-{number}", key_of(number).public, ("trainer",))) for number in numbers
    ]
    # One after another: an account has only so many nonces in flight.
    for start in range(0, len(signed), A_REQUEST):
        await load.post(0, signed[start : start + A_REQUEST])


async def join(load: Load, job: bytes, rules: JobRules, members: Sequence[Sender]) -> None:
    await load.post_all([each.sign(JoinJob(job, rules_hash(rules))) for each in members])


async def phase_of(net: LocalNetwork, job: bytes) -> str:
    """Of the job's first round, as the first validator has it; nothing before it is open."""
    door = Door(next(iter(net.members.values())).rpc)
    reply = await asyncio.to_thread(ask, door, "GET", f"/v1/jobs/{job.hex()}/rounds/1")
    return str(reply.data["phase"]) if reply.status == 200 else ""


class Crowd:
    def __init__(self, net: LocalNetwork, load: Load, job: bytes, rules: JobRules, members: range) -> None:
        self._net = net
        self._chain_id = bytes.fromhex(net.chain_id)
        self._load = load
        self._job = job
        self._rules = rules
        self._form = form_of(rules, 0)
        self._members = members
        self._senders = senders(self._chain_id, members)
        self._nodes = Nodes([(each.name, each.rpc) for each in net.members.values()])
        self._doors = Doors(self._nodes)
        parameters = self._form.layout.parameters
        self._values = np.random.default_rng(7).normal(0, 0.01, parameters + len(members)).astype(np.float32)

    async def submit_all(self, at_once: int) -> None:
        """One update each, so many under way at a time."""
        await join(self._load, self._job, self._rules, self._senders)
        while await phase_of(self._net, self._job) != "collecting":
            await asyncio.sleep(_LOOK_AGAIN_S)
        waiting = list(reversed(range(len(self._members))))

        async def lane() -> None:
            while waiting:
                await self._submit(waiting.pop())

        try:
            await asyncio.gather(*(lane() for _ in range(at_once)))
        finally:
            await self._nodes.close()

    async def _submit(self, index: int) -> None:
        sender = self._senders[index]
        payload = await asyncio.to_thread(self._payload, sender, index)
        if len(payload) <= INLINE_BYTES:
            cid, inline = raw_cid(payload), payload
        else:
            cid, inline = await self._give(index, payload), b""
        body = SubmitUpdate(self._job, 1, self._rules.initial, 1, (), 0, cid, inline)
        await self._load.post(index, [sender.sign(body)])

    def _payload(self, sender: Sender, index: int) -> bytes:
        values: NDArray[np.float32] = self._values[index : index + self._form.layout.parameters]
        return encode_update(self._form, Place(self._job, 1, sender.account), {"w": values})

    async def _give(self, index: int, payload: bytes) -> bytes:
        """The update's CID, once the validator that takes the transaction has the blob."""
        signer = Signer(self._chain_id, self._senders[index].account, key_of(self._members[index]))
        with Source(payload) as source:
            manifest = await asyncio.to_thread(source.manifest)
            cid = manifest_cid(manifest)
            permit = signer.put(cid, manifest.size_bytes, BlobKind.UPDATE)
            upload = Upload(self._doors, source, cid, manifest, permit)
            # Shared among the validators evenly: by the order that it names them in, not by who answered last.
            nodes = sorted(self._nodes.in_order(), key=lambda node: node.name)
            await upload.to(nodes[index % len(nodes)])
        return cid


def crowd_rules(parameters: int, members: int, rule: str, settings: Settings, encoding: str) -> JobRules:
    """One round that closes when all have answered."""
    made = rules_of("crowd", parameters, members)
    return replace(
        made,
        rule=rule,
        settings=written_settings(rule_of(rule), settings),
        encoding=encoding,
        weights="equal",
        cap=1,
    )


async def run(arguments: argparse.Namespace) -> None:
    net = LocalNetwork.open(arguments.network)
    rules = crowd_rules(
        arguments.parameters, arguments.members, arguments.rule, dict(arguments.setting), arguments.encoding
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(session, [member.rpc for member in net.members.values()])
        crowd = Crowd(net, load, bytes.fromhex(arguments.job), rules, range(arguments.members))
        await crowd.submit_all(arguments.at_once)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--encoding", choices=("f32", "f16", "bf16", "q8"), default="q8")
    parser.add_argument("--rule", default="fedavg")
    parser.add_argument("--setting", type=_setting, action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--at-once", type=int, default=8, help="how many updates are on their way at one time")


def job_arguments(arguments: argparse.Namespace) -> list[str]:
    """For another process, the same job."""
    named = ("members", "parameters", "encoding", "rule", "at_once")
    given = [text for name in named for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    return given + [text for name, value in arguments.setting for text in ("--setting", f"{name}={value}")]


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdecimal() else float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="the directory of a local network that runs")
    parser.add_argument("--job", required=True)
    add_job_arguments(parser)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
