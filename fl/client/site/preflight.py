"""What stands in the way of taking part, found before anything depends on it: `quorate preflight`.

Each check says what was found and what to do about it. Nothing is changed and nothing is sent: no directory is made, no
transaction signed, no app run. What nodes say counts as it does elsewhere: state is proven from the network file on,
and a node's word about itself (its version, its clock) is shown as such.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from statistics import median

from chain.genesis import RULES_VERSION, Genesis
from chain.transaction import account_id
from fl.client.errors import BadFile
from fl.client.home import in_flight
from fl.client.keyfile import ACCOUNT, is_encrypted, public_of, read_private, unseal
from fl.client.networkfile import NetworkFile, read_network
from fl.client.nodes import Nodes
from fl.client.reader import Reader
from fl.client.sender import VALID_FOR_MS
from fl.client.site.findings import ROOM_BYTES, Check, Findings, Given, check_room, nearest
from fl.client.site.nodelook import Look, look_at, proven_time_ms
from fl.client.site.policy import Policy
from fl.client.site.prejob import check_job
from fl.client.transfer.doors import Doors
from fl.records import Account, Member, Registrars
from fl.state import REGISTRARS, account_key, member_key

FAR_BLOCKS = 16
"""A node that is so far behind the others will not answer what was just proven."""
NOTICED_SKEW_S = 30.0
_SILENT_BLOCKS = 12
"""Heartbeats without a block, after which a chain stands still."""
_OPTIONAL = {
    "numba": "node",
    "torch": "torch",
    "sklearn": "sklearn",
    "flwr": "flower",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
}
"""Packages by the extra that installs them."""


async def preflight(given: Given) -> list[Check]:
    found = Findings()
    network: NetworkFile | None = None
    with found.failing("network file"):
        network = _network_file(found, given)
    account = _key(found, given)
    _home(found, given, network, account)
    policy = _policy(found, given)
    if network is not None and any(each.rpc for each in network.validators.members):
        await _on_the_network(found, given, network, account, policy)
    _packages(found)
    return found.checks


# On this machine


def _network_file(found: Findings, given: Given) -> NetworkFile:
    network = read_network(given.network)
    validators, answering = network.validators, [each for each in network.validators.members if each.rpc]
    text = (
        f"{given.network}: {network.name}, chain {network.checkpoint.chain_id.hex()[:16]}…, epoch {validators.epoch}, "
        f"{validators.n} validators, {len(answering)} of them with an address for clients"
    )
    if len(answering) <= validators.f:
        todo = f"Ask for a file with {validators.f + 1} addresses: with fewer, no head can be compared with others."
        found.fail("network file", text, todo)
    else:
        found.ok("network file", text)
    return network


def _key(found: Findings, given: Given) -> bytes | None:
    """The account, if the key file says which one it is."""
    if given.key is None:
        say = found.fail if given.job is not None else found.warn
        say("key", "no key is named", "Name the account's key: --key FILE. Without one there is only reading.")
        return None
    with found.failing("key"):
        data = read_private(given.key)
        public = public_of(given.key, data, ACCOUNT)
        account = given.account or account_id(public)
        text = f"{given.key}: account {account.hex()}"
        if not is_encrypted(given.key):
            unseal(given.key, data, None, ACCOUNT)
            found.warn(
                "key",
                f"{text}, not encrypted",
                "Whoever reads this file is this account: keep it on an encrypted disk, or make a key that has a "
                "passphrase.",
            )
        elif given.passphrase is None:
            found.warn("key", f"{text}, encrypted and not opened", "Say where the passphrase comes from: --passphrase.")
        else:
            unseal(given.key, data, given.passphrase, ACCOUNT)
            found.ok("key", f"{text}, encrypted; the passphrase opens it")
        return account
    return None


def _home(found: Findings, given: Given, network: NetworkFile | None, account: bytes | None) -> None:
    place = nearest(given.home)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "is no directory" if not place.is_dir() else "cannot be written to"
        found.fail("home", f"{given.home}: {place} {what}", "Name another directory: --home DIR or QUORATE_HOME.")
        return
    where = f"{given.home} can be written to"
    flying = 0
    if network is not None and account is not None:
        flying = in_flight(given.home, network.checkpoint.chain_id, account)
    if flying:
        found.warn(
            "home",
            f"{where}; {flying} transactions of an earlier run are in flight",
            "Nothing to do: they are settled first when the next run of this account begins.",
        )
    else:
        found.ok("home", where if place == given.home else f"{where}; it is made when it is first used")
    check_room(found, given, ROOM_BYTES, "disk", "receipts and what is in flight")


def _policy(found: Findings, given: Given) -> Policy | None:
    with found.failing("policy"):
        policy = given.policy.read()
        if not given.policy.there:
            found.warn(
                "policy",
                f"there is no {given.policy.path}: whatever this account joins is trained in",
                "Say what this site admits: quorate policy template.",
            )
            return None
        mode = stat.S_IMODE(given.policy.path.stat().st_mode)
        if mode & 0o022:
            found.warn(
                "policy",
                f"{given.policy.path} can be changed by others than its owner",
                f"Run: chmod go-w {given.policy.path}",
            )
        else:
            found.ok("policy", f"{given.policy.path} is read")
        if wait_s := policy.wait_s(given.now_s()):
            found.warn(
                "hours",
                f"tasks are offered from {given.policy.shown(wait_s)} on",
                "Nothing to do: the loop waits until then.",
            )
        elif policy.hours is not None:
            found.ok("hours", "tasks are offered at this time")
        return policy
    return None


def _packages(found: Findings) -> None:
    here = [each for each in _OPTIONAL if find_spec(each) is not None]
    absent = [f"{each} (quorate[{extra}])" for each, extra in _OPTIONAL.items() if each not in here]
    found.ok("packages", f"installed: {', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}")


# On the network


async def _on_the_network(
    found: Findings, given: Given, network: NetworkFile, account: bytes | None, policy: Policy | None
) -> None:
    addresses = [(each.name, each.rpc) for each in network.validators.members if each.rpc]
    nodes = Nodes(addresses, 0, given.patience_s)
    try:
        reader = Reader(nodes, network.checkpoint)
        doors = Doors(nodes)
        readers = {each.name: Reader(nodes, network.checkpoint) for each in nodes.in_order()}
        looking = (look_at(each, readers[each.name], doors, given.now_s) for each in nodes.in_order())
        looks = sorted(await asyncio.gather(*looking), key=lambda look: look.name)
        newest = max((look.height for look in looks), default=0)
        for look in looks:
            _node(found, look, newest)
        if not _heads(found, looks, reader.checkpoint.validators.f + 1):
            return
        genesis: Genesis | None = None
        with found.failing("genesis"):
            genesis = await reader.genesis()
        if genesis is None:
            return
        await _clock(found, given, looks, genesis, nodes)
        _versions(found, given, looks, genesis)
        if account is not None:
            await _guarded(found, "member", _membership(found, given, reader, genesis, account))
        if given.job is not None:
            await _guarded(found, "job", check_job(found, given, reader, genesis, account, policy))
    finally:
        await nodes.close()


async def _guarded(found: Findings, name: str, work: Awaitable[None]) -> None:
    with found.failing(name):
        await work


def _node(found: Findings, look: Look, newest: int) -> None:
    name = f"node {look.name}"
    if look.lies:
        found.fail(
            name,
            f"{look.url}: its head is not proven from the network file on: {look.fault}",
            "It is on another chain, or it lies: check the network file, and tell the members.",
        )
        return
    if look.fault:
        found.warn(name, f"{look.url}: {look.fault}", "Check the address and the way there; others answer instead.")
        return
    text = f"{look.url}: {look.latency_ms:.0f} ms, version {look.version or 'unknown'}, height {look.height}"
    complaints = []
    if newest - look.height > FAR_BLOCKS:
        complaints.append(f"{newest - look.height} blocks behind")
    if look.reasons:
        complaints.append(f"not ready: {', '.join(look.reasons)}")
    if look.door_fault:
        complaints.append(f"its door for blobs does not answer: {look.door_fault}")
    if not look.is_private:
        complaints.append("spoken to in the clear, without TLS")
    if complaints:
        found.warn(name, f"{text}; {'; '.join(complaints)}", "Tell its operator; other nodes answer instead.")
    else:
        found.ok(name, f"{text}; its door for blobs answers{', TLS' if look.url.startswith('https') else ''}")


def _heads(found: Findings, looks: Sequence[Look], wanted: int) -> bool:
    """Whether there is anything to be asked."""
    proving = [look for look in looks if look.head is not None]
    if len(proving) < wanted:
        lying = any(look.lies for look in looks)
        found.fail(
            "heads",
            f"{len(proving)} nodes prove a head, and {wanted} are needed to tell an outdated one",
            "Check that the network file is of the chain that these nodes are on."
            if lying
            else "Check the network and the addresses in the network file.",
        )
        return False
    heads = {look.head.height: look.head for look in proving if look.head is not None}
    if any(look.head != heads[look.height] for look in proving):
        found.fail(
            "heads",
            "two states of one height are certified: more than a third of the validators lie",
            "Stop, and tell the members.",
        )
        return False
    newest = max(heads)
    level = [look.name for look in proving if newest - look.height <= FAR_BLOCKS]
    behind = [look.name for look in proving if look.name not in level]
    text = f"{len(level)} nodes agree on height {newest}, {wanted} are needed"
    if len(level) < wanted:
        found.fail(
            "heads", f"{text}; behind: {', '.join(behind)}", "Wait until they have caught up, or ask the operators."
        )
    elif behind:
        found.warn("heads", f"{text}; behind: {', '.join(behind)}", "Tell their operators.")
    else:
        found.ok("heads", text)
    if all(look.door_fault for look in proving):
        found.fail(
            "blobs", "no node's door for blobs answers", "Large models and updates go through them: ask the operators."
        )
    return True


async def _clock(found: Findings, given: Given, looks: Sequence[Look], genesis: Genesis, nodes: Nodes) -> None:
    """By what the nodes' own clocks show, and by the time of the newest block, which is proven."""
    told = [look.ahead_s for look in looks if look.ahead_s is not None]
    newest = max((look.head for look in looks if look.head is not None), key=lambda head: head.height)
    block_ms = await proven_time_ms(nodes, newest)
    behind_s = median(told) if told else 0.0
    age_s = given.now_s() - block_ms / 1000 if block_ms is not None else None
    params = genesis.params
    valid_s = min(VALID_FOR_MS, params.max_validity_ms // 2) / 1000
    ahead_most_s = params.max_validity_ms / 1000 - valid_s
    # A header's time is that of honest clocks or less, so a clock that it is ahead of is behind them.
    if age_s is not None and -age_s > behind_s:
        behind_s = -age_s
    text = f"{abs(behind_s):.1f} s {'behind' if behind_s > 0 else 'ahead of'} the nodes'"
    if age_s is not None:
        text += f"; the newest block, by this clock, is {max(age_s, 0):.1f} s old"
    todo = "Set this machine's clock (timedatectl set-ntp true)."
    if behind_s >= valid_s:
        found.fail("clock", f"{text}; what is signed here has expired before it arrives", todo)
    elif -behind_s >= ahead_most_s:
        found.fail("clock", f"{text}; what is signed here is valid for longer than the chain admits", todo)
    elif abs(behind_s) >= NOTICED_SKEW_S:
        found.warn("clock", f"{text}; transactions may be off by {min(valid_s, ahead_most_s):.0f} s at most", todo)
    elif age_s is not None and age_s > _SILENT_BLOCKS * params.heartbeat_ms / 1000:
        found.warn("clock", text, "The chain makes no blocks: ask the operators.")
    else:
        found.ok("clock", text)


def own_version() -> str:
    try:
        return version("quorate")
    except PackageNotFoundError:
        return "unknown"


def _versions(found: Findings, given: Given, looks: Sequence[Look], genesis: Genesis) -> None:
    own, params = own_version(), genesis.params
    theirs = sorted({look.version for look in looks if look.version})
    text = f"quorate {own} here, {', '.join(theirs) or 'unknown'} at the nodes"
    if params.rules_version != RULES_VERSION:
        found.fail(
            "versions",
            f"the chain is under rules of version {params.rules_version}, and this program knows {RULES_VERSION}",
            "Install the version of quorate that the nodes run.",
        )
    elif theirs and theirs != [own]:
        found.warn("versions", text, "Install the version that the nodes run, unless they are being renewed.")
    else:
        found.ok("versions", text)
    wanted = params.kernel_version
    other = [f"{look.name} has {look.kernel_version}" for look in looks if look.kernel_version not in (None, wanted)]
    if given.kernel_version is not None and given.kernel_version != wanted:
        other.append(f"this program has {given.kernel_version}, so quorate verify and replay cannot compute its rounds")
    if other:
        found.warn("kernels", f"the chain's are of version {wanted}; {'; '.join(other)}", "Install the same version.")
    else:
        found.ok("kernels", f"version {wanted}, as the chain wants it")


async def _membership(found: Findings, given: Given, reader: Reader, genesis: Genesis, account: bytes) -> None:
    assert given.key is not None
    member = await reader.record(Member, member_key(account))
    if member is None:
        registrars = await reader.record(Registrars, REGISTRARS)
        is_open = registrars is not None and registrars.open_admission
        found.fail(
            "member",
            f"the account {account.hex()} is no member of {genesis.name}",
            "Register it: admission is open here." if is_open else "Give a registrar the key's public part.",
        )
        return
    text = f"{member.name}{f' of {member.organisation}' if member.organisation else ''}: {', '.join(member.roles)}"
    if member.revoked:
        found.fail("member", f"{text}; revoked", "Ask a registrar why, and to be registered anew.")
    elif given.job is not None and given.role not in member.roles:
        found.fail("member", f"{text}; not {given.role}", f"Ask a registrar for the role {given.role}.")
    else:
        found.ok("member", text)
    known = await reader.record(Account, account_key(account))
    with found.failing("account"):
        if known is not None and known.key != public_of(given.key, read_private(given.key), ACCOUNT):
            raise BadFile(
                "ROTATED", "Another key speaks for the account since it was rotated.", "Use the newer key file."
            )
