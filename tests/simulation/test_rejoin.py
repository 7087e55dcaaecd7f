"""Lost journals, copied keys, old copies of a disk: a validator must not contradict what it once said."""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from chain.availability import AVAILABILITY_KINDS
from chain.certificate import Vote, VoteKind
from chain.genesis import Params, SetChange
from chain.hashing import Domain, signing_bytes
from consensus.evidence import offence, view_of
from consensus.messages import Channel, Proposal, ViewAnswer, from_frame, to_frame
from node.datadir import CannotRejoin, create, owner_of
from node.node import Node
from node.ports import Peer
from tests.simulation.claims import Promises, assert_alive, level, membership
from tests.simulation.cluster import Cluster, Host, consensus_key, genesis_of, validator
from tests.simulation.loop import simulate
from tests.simulation.outages import Plan, Ran, crash_by

LOST = 0
OTHERS = (1, 2, 3)


@dataclass
class Said:
    """Every vote of one validator that anybody received, whichever incarnation had sent it."""

    votes: list[tuple[float, Vote]] = field(default_factory=list)

    def tap(self, now: float, source: str, target: str, channel: Channel, frame: bytes) -> None:
        if channel is Channel.CONSENSUS and source == f"n{LOST}" and frame[0] in (1, 2):
            message = from_frame(channel, frame)
            vote = message.vote if isinstance(message, Proposal) else message
            if isinstance(vote, Vote) and vote.signer == LOST:
                # It also passes on what others had signed.
                self.votes.append((now, vote))

    def of(self, *kinds: VoteKind, since: float = 0.0) -> list[Vote]:
        return [vote for now, vote in self.votes if vote.kind in kinds and now >= since]

    def ordering(self, since: float = 0.0) -> list[Vote]:
        return self.of(VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE, since=since)

    def assert_consistent(self) -> None:
        by_view: dict[tuple[int, int | None], dict[bytes, Vote]] = defaultdict(dict)
        for vote in self.ordering():
            by_view[vote.epoch, view_of(vote)][vote.signature] = vote
        for votes in by_view.values():
            for first, second in combinations(votes.values(), 2):
                assert offence(first, second) is None, (first, second)


def lose(host: Host, everything: bool) -> None:
    """The operator finds the journal gone, or the whole disk."""
    machine = host.machine
    for name in list(machine.disk.entries):
        if everything or name.startswith("journal/"):
            machine.disk.entries.pop(name)
            machine.disk.durable.pop(name, None)
    if everything:
        machine.kv.rows.clear()
        machine.kv.keys.clear()
        machine.kv.durable.clear()
        host.data.lose_everything()


Script = Callable[[Cluster, Said], Coroutine[None, None, None]]


def play(script: Script, seed: int = 6, n: int = 4, set_changes: tuple[SetChange, ...] = (), **params: int) -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(n, Params(**params), set_changes=set_changes), seed)
        said = Said()
        cluster.network.tap(said.tap)
        await cluster.start()
        await script(cluster, said)
        said.assert_consistent()

    simulate(main)


async def takes_part_again(cluster: Cluster, said: Said, since: float, number: int = 500) -> None:
    assert await cluster.until(lambda: cluster.hosts[LOST].up and bool(said.ordering(since)), within=30)
    assert await cluster.until(lambda: cluster.node(LOST).replica.availability.room() > 0, within=40)
    await assert_alive(cluster, number)
    since = asyncio.get_running_loop().time()
    assert await cluster.until(lambda: bool(said.of(VoteKind.FINALIZE, since=since)), within=15)


@pytest.mark.parametrize("everything", [False, True])
def test_a_leader_that_lost_its_journal_does_not_propose_again(everything: bool) -> None:
    """The others are cut off from one another, so the view of the lost proposal is still open when it comes back."""

    async def script(cluster: Cluster, said: Said) -> None:
        for number in range(3):
            await cluster.submit(1, cluster.sign("registrar", membership(number)))
        ordering = cluster.node(LOST).replica.ordering
        assert await cluster.until(lambda: ordering.tree.leader(ordering.view) == LOST, within=60, step=0.01)
        view = ordering.view
        for first, second in combinations(OTHERS, 2):
            cluster.network.block(f"n{first}", f"n{second}")
            cluster.network.block(f"n{second}", f"n{first}")
        host = cluster.hosts[LOST]

        def proposed() -> bool:
            return any(view_of(vote) == view for vote in said.of(VoteKind.NOTARIZE))

        assert await cluster.until(proposed, within=10, step=0.001)
        host.machine.crash()
        lose(host, everything)
        back = asyncio.get_running_loop().time() + 0.2
        await asyncio.sleep(0.2)
        await host.live(cluster.genesis, rejoin=True)
        await asyncio.sleep(4)
        cluster.network.heal()
        await takes_part_again(cluster, said, back)
        assert min(view_of(vote) or 0 for vote in said.ordering(since=back)) > view + 2

    play(script)


def rejoin_after(operation: int, everything: bool) -> None:
    """Under load: the disk is lost at this operation, and the validator comes back at once without it."""

    async def script(cluster: Cluster, said: Said) -> None:
        promises = Promises(cluster)
        host, ran = cluster.hosts[LOST], Ran()
        crash_by(Plan(LOST, host.machine.operations + operation), cluster, ran)
        gone = asyncio.Event()
        host.machine.on_crash = gone.set
        work = []
        for number in range(40):
            if cluster.hosts[number % 4].up:
                data = cluster.sign("registrar", membership(number))
                work.append(asyncio.ensure_future(cluster.submit(number % 4, data, within=4)))
            await asyncio.sleep(0.05)
        await asyncio.wait_for(gone.wait(), 30)
        lose(host, everything)
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        await asyncio.gather(*work, return_exceptions=True)
        await takes_part_again(cluster, said, back)
        assert await cluster.until(lambda: promises.kept() and level(cluster), within=20)

    play(script, seed=operation)


@pytest.mark.parametrize("everything", [False, True])
def test_a_validator_that_lost_its_journal_never_contradicts_it(everything: bool) -> None:
    for operation in range(11 if everything else 2, 160, 47):
        rejoin_after(operation, everything)


@pytest.mark.nightly
@pytest.mark.parametrize("everything", [False, True])
def test_a_journal_may_be_lost_at_any_operation(everything: bool) -> None:
    for operation in range(1, 200, 3):
        rejoin_after(operation, everything)


def interrupted_rejoin(operation: int) -> bool:
    """The power fails at this operation of a rejoining, which the operator then begins anew; False if it is over by
    then."""
    interrupted = False

    async def script(cluster: Cluster, said: Said) -> None:
        nonlocal interrupted
        host = cluster.hosts[LOST]
        host.machine.crash()
        lose(host, everything=False)
        ran, gone = Ran(), asyncio.Event()
        crash_by(Plan(LOST, host.machine.operations + operation, survival=operation), cluster, ran)
        host.machine.on_crash = gone.set
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        assert await cluster.until(lambda: host.up or gone.is_set(), within=5)
        interrupted = gone.is_set()
        host.machine.on_operation = None
        if interrupted:
            owner = owner_of(host.machine.boot().disk)
            host.machine.kill()
            done = owner is not None and owner.rejoining and owner.complete
            await host.live(cluster.genesis, rejoin=not done)
        assert await cluster.until(lambda: host.up, within=5)
        assert cluster.node(LOST).replica.silent
        await takes_part_again(cluster, said, back)

    play(script)
    return interrupted


def interrupt_rejoins(stride: int) -> None:
    operation = 1
    while interrupted_rejoin(operation):
        operation += stride
    assert operation > 10


def test_a_rejoining_that_was_cut_short_is_begun_anew() -> None:
    interrupt_rejoins(stride=3)


@pytest.mark.nightly
def test_a_rejoining_may_be_cut_short_at_every_operation() -> None:
    interrupt_rejoins(stride=1)


def test_a_rejoining_validator_promises_nothing_before_it_holds_what_it_promised() -> None:
    async def script(cluster: Cluster, said: Said) -> None:
        load = asyncio.ensure_future(submit_for_ever(cluster))
        await asyncio.sleep(2)
        host = cluster.hosts[LOST]
        host.machine.crash()
        lose(host, everything=True)
        await asyncio.sleep(0.5)
        promised = held_by(cluster.node(1))
        assert len(promised) > 20
        lacking: list[set[bytes]] = []

        def tap(now: float, source: str, target: str, channel: Channel, frame: bytes) -> None:
            if source == f"n{LOST}" and channel is Channel.CONSENSUS and frame[0] == 2 and not lacking:
                vote = from_frame(channel, frame)
                if isinstance(vote, Vote) and vote.kind in AVAILABILITY_KINDS:
                    node = cluster.node(LOST)
                    lacking.append({digest for digest in promised if not node.batches.holds(digest)})

        cluster.network.tap(tap)
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        assert await cluster.until(lambda: bool(lacking), within=30)
        assert lacking == [set()]
        load.cancel()
        await takes_part_again(cluster, said, back)

    play(script)


async def submit_for_ever(cluster: Cluster) -> None:
    number = 1_000
    work = []
    while True:
        number += 1
        work.append(asyncio.ensure_future(submit_if_up(cluster, cluster.hosts[number % 4], number)))
        await asyncio.sleep(0.05)


async def submit_if_up(cluster: Cluster, host: Host, number: int) -> None:
    if host.up:
        await cluster.submit(host.index, cluster.sign("registrar", membership(number)))


def held_by(node: Node) -> set[bytes]:
    """The batches that blocks name, and those that are certified and wait to be."""
    named = {digest for block in node.store.blocks(1, 10_000) for digest in block.body.batches}
    return named | {lot.digest for lot in node.replica.availability._desk.lots if lot.certificate is not None}


def test_a_peer_that_lies_about_its_view_cannot_silence_a_validator_for_ever() -> None:
    async def script(cluster: Cluster, said: Said) -> None:
        liar = 2

        def lie(peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
            message = from_frame(channel, frame)
            if isinstance(message, ViewAnswer):
                view = 2**60
                subject = message.nonce + view.to_bytes(8, "big")
                signed = signing_bytes(Domain.REJOIN, cluster.genesis.chain_id, message.epoch, subject)
                signature = consensus_key(liar).sign(signed)
                frame = to_frame(ViewAnswer(message.nonce, message.epoch, view, message.entry, signature))
            return ((peer, channel, frame),)

        cluster.network.wrap(f"n{liar}", lie)
        host = cluster.hosts[LOST]
        host.machine.crash()
        lose(host, everything=False)
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        await takes_part_again(cluster, said, back)

    play(script)


def test_rows_of_an_old_journal_do_not_hide_that_a_new_one_is_silent() -> None:
    """The rows say from which record on to replay; of a journal that is gone they say nothing."""

    async def script(cluster: Cluster, said: Said) -> None:
        host = cluster.hosts[LOST]
        load = asyncio.ensure_future(submit_for_ever(cluster))
        assert await cluster.until(lambda: min(cluster.executed()) > 80, within=60)
        cluster.node(LOST).store.sync()
        host.machine.kill()
        lose(host, everything=False)
        silent: list[bool] = []
        host.started = lambda node: silent.append(node.replica.silent)
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        assert await cluster.until(lambda: bool(silent), within=5)
        assert silent == [True]
        load.cancel()
        await takes_part_again(cluster, said, back)
        host.machine.crash()
        await host.live(cluster.genesis)
        await takes_part_again(cluster, said, asyncio.get_running_loop().time(), number=600)

    play(script, horizon=16)


@pytest.mark.parametrize("away_seconds", [0.0, 0.3, 4.0])
def test_a_journal_lost_at_the_end_of_an_epoch_is_rejoined_in_the_next(away_seconds: float) -> None:
    due = 10

    async def script(cluster: Cluster, said: Said) -> None:
        load = asyncio.ensure_future(submit_for_ever(cluster))
        assert await cluster.until(lambda: max(cluster.heights()) >= due, within=30, step=0.01)
        host = cluster.hosts[LOST]
        host.machine.crash()
        lose(host, everything=False)
        await asyncio.sleep(away_seconds)
        back = asyncio.get_running_loop().time()
        await host.live(cluster.genesis, rejoin=True)
        assert await cluster.until(lambda: all(n.replica.validators.epoch == 1 for n in cluster.running()), within=20)
        load.cancel()
        await takes_part_again(cluster, said, back)
        assert {vote.epoch for vote in said.ordering(since=back)} == {1}

    play(script, set_changes=(SetChange(due, tuple(validator(index) for index in range(4))),))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_with_three_or_fewer_there_is_no_rejoining(n: int) -> None:
    async def script(cluster: Cluster, said: Said) -> None:
        host = cluster.hosts[LOST]
        host.machine.kill()
        lose(host, everything=False)
        ports = host.machine.boot()
        with pytest.raises(CannotRejoin, match="Restore the journal, or start"):
            await create(ports, cluster.genesis.chain_id, host.key.public, n, rejoin=True)

    play(script, n=n)


# Two nodes with one key, and old copies


def twin_of(cluster: Cluster, index: int) -> Host:
    twin = Host(len(cluster.hosts), *cluster.machines(f"twin{index}", index), consensus_key(index))
    cluster.hosts.append(twin)
    return twin


def test_two_nodes_with_one_key_stop() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=8)
        await cluster.start()
        await cluster.submit(1, cluster.sign("registrar", membership(0)))
        host, twin = cluster.hosts[LOST], twin_of(cluster, LOST)
        await twin.live(cluster.genesis)
        load = asyncio.ensure_future(submit_for_ever(cluster))
        assert await cluster.until(lambda: bool(host.failures or twin.failures), within=30)
        load.cancel()
        (failure,) = (host.failures + twin.failures)[:1]
        assert failure.code == "KEY_IN_USE"
        assert "another node runs with this key" in str(failure)

    simulate(main)


@pytest.mark.parametrize("away_seconds", [0.0, 3.0])
def test_an_older_copy_of_a_disk_is_noticed(away_seconds: float) -> None:
    """At once by certificates that hold newer votes of its own, or after an absence by those of older blocks."""

    async def script(cluster: Cluster, said: Said) -> None:
        host = cluster.hosts[LOST]
        load = asyncio.ensure_future(submit_for_ever(cluster))
        await asyncio.sleep(1)
        machine = host.machine
        machine.kill()
        copied = copy.deepcopy((machine.disk, machine.kv))
        await host.live(cluster.genesis)
        await asyncio.sleep(2)
        machine.kill()
        machine.disk, machine.kv = copied
        await asyncio.sleep(away_seconds)
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: bool(host.failures), within=20)
        assert host.failures[0].code == "KEY_IN_USE" and "rolled back" in str(host.failures[0])
        load.cancel()
        said.votes.clear()

    play(script)
