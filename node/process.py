"""A validator's process: from one configuration to a running node, and from a signal to an orderly end.

Order at the start: configuration, genesis, keys, the data directory's owner, the node (which takes up what the disk
holds), then clients, then the links and the data process, which is started again whenever it ends.
At the end: no more transactions are taken, those that were are given a moment to become final, clients are let go,
and the ports are closed once nothing uses them. Whatever is lost by dying at any point instead, no promise is among
it: what `kill -9` leaves behind is what a start has to cope with anyway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvloop

from chain.codec import CodecError, decode, encode
from chain.genesis import MAX_GENESIS_BYTES, Genesis, check_genesis
from chain.keys import SigningKey
from consensus.messages import DataAddress
from fl.kernels import KERNEL_VERSION
from fl.retention import Policy
from node import datadir, garbage
from node.buckets import Rate
from node.config import Config, ConfigError
from node.data.setup import Place, Setup
from node.keystore import load_key, read_passphrase
from node.membership import validator_sets
from node.node import Limits, Node, NodeFailure
from node.ports import Peer, Ports
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.links import TlsLinks
from node.ports.offload import ThreadOffload
from node.ports.pipe import CorePipe
from node.retention import Keeping
from node.rpc.limits import RpcLimits
from node.rpc.server import RpcConfig, RpcServer, start

log = logging.getLogger("quorate.process")

ROWS = "rows"
"""LevelDB's directory within the data directory."""
DATA = "data"
"""The data process's own directory within it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which validator of which chain this process is."""

    name: str
    genesis: Genesis
    consensus: SigningKey
    link: SigningKey


def identify(config: Config) -> Identity:
    """Reads the genesis and the keys, asking for the passphrase if need be. Raises ConfigError, GenesisError and
    KeystoreError."""
    genesis = _genesis(config)
    passphrase = read_passphrase(config.node.passphrase)
    consensus = load_key(config.node.keys, "consensus", passphrase)
    link = load_key(config.node.keys, "link", passphrase)
    for validators in validator_sets(genesis).values():
        index = validators.index_of(consensus.public)
        if index is not None and validators.members[index].link_key == link.public:
            return Identity(validators.members[index].name, genesis, consensus, link)
    raise ConfigError(
        f"The keys in {config.node.keys} are not those of a validator in {config.node.genesis}; check [node] keys "
        "and [node] genesis, and compare the chain id with the other members."
    )


def _genesis(config: Config) -> Genesis:
    path = config.node.genesis
    try:
        with open(path, "rb") as file:
            genesis = decode(Genesis, file.read(MAX_GENESIS_BYTES + 1), MAX_GENESIS_BYTES)
    except OSError as error:
        raise ConfigError(f"The genesis {path} cannot be read: {error.strerror}; check [node] genesis.") from None
    except CodecError as error:
        raise ConfigError(f"{path} is no genesis: {error}; ask another member for the file.") from None
    check_genesis(genesis)
    wanted = genesis.params.kernel_version
    if wanted != KERNEL_VERSION:
        raise ConfigError(
            f"The chain of {path} aggregates by kernels of version {wanted}, and this program has version "
            f"{KERNEL_VERSION}: it would compute other bytes than the other validators. Install the version of quorate "
            "that they run."
        )
    return genesis


def addresses_of(config: Config, genesis: Genesis) -> dict[Peer, tuple[str, int]]:
    """The configured addresses by key. Raises ConfigError."""
    keys = {
        member.name: member.consensus_key
        for validators in validator_sets(genesis).values()
        for member in validators.members
    }
    unknown = sorted(config.links.addresses.keys() - keys.keys())
    if unknown:
        raise ConfigError(
            f"[links] addresses names {', '.join(unknown)}, who are no validators; "
            f"there are: {', '.join(sorted(keys))}."
        )
    return {keys[name]: (address.host, address.port) for name, address in config.links.addresses.items()}


def initialise(config: Config, *, rejoin: bool) -> Identity:
    """Make the data directory of a validator. Raises PortError beside what `identify` does."""
    identity = identify(config)

    async def create() -> None:
        async with _ports(config, identity) as ports:
            sets = validator_sets(identity.genesis).values()
            least = min(validators.n for validators in sets)
            await datadir.create(ports, identity.genesis.chain_id, identity.consensus.public, least, rejoin=rejoin)

    asyncio.run(create())
    return identity


def run(config: Config) -> None:
    """Returns after an orderly stop. Raises NodeFailure and PortError beside what `identify` does."""
    os.umask(0o077)
    identity = identify(config)
    addresses = addresses_of(config, identity.genesis)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Process(config, identity, addresses).run())


@asynccontextmanager
async def _ports(config: Config, identity: Identity) -> AsyncIterator[Ports]:
    disk = FileDisk(config.node.data_dir)
    try:
        kv = LevelKv(config.node.data_dir / ROWS)
        offload = ThreadOffload(config.limits.threads)
        try:
            chain_id, listen = identity.genesis.chain_id, config.links.listen
            links = TlsLinks(identity.link, identity.consensus.public, chain_id, (listen.host, listen.port))
            pipe = CorePipe(encode(setup_of(config, identity)))
            try:
                yield Ports(links, disk, kv, offload, SystemClock(), pipe)
            finally:
                await pipe.close()
        finally:
            offload.close()
            kv.close()
    finally:
        disk.close()


def setup_of(config: Config, identity: Identity) -> Setup:
    """What the data process works with: settings as they were read here, and the key that was unlocked here."""
    data, rpc = config.data, config.rpc
    return Setup(
        chain=identity.genesis.chain_id,
        consensus_key=identity.consensus.public,
        link_seed=identity.link.seed,
        data_dir=str(config.node.data_dir / DATA),
        bulk=Place(*config.bulk_listen),
        door=Place(*config.door_listen),
        tls_cert=str(rpc.tls_cert or ""),
        tls_key=str(rpc.tls_key or ""),
        cors=rpc.cors,
        gateways=data.gateways,
        reserve_bytes=config.limits.disk_reserve_bytes,
        member_bytes=data.member_bytes,
        lease_ms=data.lease_ms,
        blob_bytes=data.blob_bytes,
        sums_bytes=data.sums_bytes,
        downloads=data.downloads,
        threads=config.limits.threads,
        requests_per_s=rpc.requests_per_s,
        log_level=config.log.level,
        log_format=config.log.format,
    )


class _Process:
    def __init__(self, config: Config, identity: Identity, addresses: Mapping[Peer, tuple[str, int]]) -> None:
        self._config = config
        self._identity = identity
        self._addresses = addresses
        self._asked = asyncio.Event()
        self._urged = asyncio.Event()

    async def run(self) -> None:
        config, identity = self._config, self._identity
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop)
        async with _ports(config, identity) as ports:
            datadir.check_owner(ports.disk, identity.genesis.chain_id, identity.consensus.public)
            node = await Node.open(
                identity.genesis,
                identity.consensus,
                ports,
                limits=_limits(config),
                addresses=self._addresses,
            )
            garbage.settle()
            server = await _serving(node, config)
            try:
                log.info(
                    "started",
                    extra={
                        "validator": identity.name,
                        "chain": identity.genesis.chain_id,
                        "links": str(config.links.listen),
                        "rpc": str(config.rpc.listen),
                        "height": node.executor.executed.lineage.height,
                    },
                )
                await self._live(node, server)
            finally:
                await server.close()
        log.info("stopped")

    def _ask_to_stop(self) -> None:
        """Asked a second time, it no longer waits for anything."""
        if self._asked.is_set():
            self._urged.set()
        self._asked.set()

    async def _live(self, node: Node, server: RpcServer) -> None:
        running = asyncio.create_task(node.run(), name="node")
        try:
            tell_systemd("READY=1")
            await _first(running, asyncio.create_task(self._asked.wait()))
            if not running.done():
                log.info("stopping", extra={"unsettled": node.admission.unsettled})
                tell_systemd("STOPPING=1")
                drained = asyncio.create_task(node.drain(self._config.node.drain_ms / 1000))
                await _first(running, drained, asyncio.create_task(self._urged.wait()))
                await server.close()
        finally:
            node.stop()
            try:
                await running
            except OSError as error:
                listen = self._config.links.listen
                raise NodeFailure("CANNOT_LISTEN", f"cannot listen on {listen}: {error.strerror}") from error


async def _first(kept: asyncio.Task[None], *others: asyncio.Task[Any]) -> None:
    """Returns when one of them is done; all but the first are ended with it."""
    await asyncio.wait({kept, *others}, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _serving(node: Node, config: Config) -> RpcServer:
    try:
        return await start(node, _rpc_config(config))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"[rpc] tls_cert and tls_key cannot be used: {reason}.") from error


def _rpc_config(config: Config) -> RpcConfig:
    rpc = config.rpc
    return RpcConfig(
        host=rpc.listen.host,
        port=rpc.listen.port,
        tls_cert=rpc.tls_cert,
        tls_key=rpc.tls_key,
        admin_socket=config.admin_socket,
        cors=rpc.cors,
        door_url=config.data.advertise_door or "",
        limits=RpcLimits(requests=_rate(rpc.requests_per_s), submitted_bytes=_rate(rpc.submitted_bytes_per_s)),
    )


def _limits(config: Config) -> Limits:
    limits, advertise = config.limits, config.data.advertise
    return Limits(
        disk_reserve_bytes=limits.disk_reserve_bytes,
        journal_keep_blocks=limits.journal_keep_blocks,
        account_rate=_rate(limits.account_transactions_per_s),
        stranger_rate=_rate(limits.stranger_transactions_per_s),
        keeping=Keeping(_policy(config)),
        advertised=None if advertise is None else DataAddress(*advertise),
    )


def _policy(config: Config) -> Policy:
    data = config.data
    return Policy(
        update_rounds=data.keep_update_rounds,
        models=data.keep_models,
        every=data.keep_models_every,
        archive=data.archive,
    )


def _rate(per_second: int) -> Rate:
    return Rate(per_second, 2 * per_second)


def tell_systemd(state: str) -> None:
    """For units of Type=notify; does nothing anywhere else."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.connect("\0" + place[1:] if place.startswith("@") else place)
            notices.send(state.encode())
