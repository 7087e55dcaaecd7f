"""Whose a data directory is, and what may be done in it.

A journal speaks for one key on one chain. Started with another key, or with none of its votes, a validator would
contradict itself, so the directory names its owner and starting checks it. Only `create` makes a journal, and it
makes an ordinary one only where there never was any: a validator that may have voted before has to rejoin silently.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from node.node import JOURNAL, LOCK, initialise
from node.ports import Disk, NoSuchFile, PortError, Ports
from node.store import Store

OWNER = "owner.json"
REJOIN = "--rejoin-with-same-key"
LEAST_FOR_REJOINING = 4
"""Validators. With fewer none may fail, so there is no quorum that could vouch for how far one had got."""


class NotInitialised(PortError):
    code = "NOT_INITIALISED"


class WrongOwner(PortError):
    """The directory holds the votes of another validator or of another chain."""

    code = "WRONG_OWNER"


class AlreadyInitialised(PortError):
    code = "ALREADY_INITIALISED"


class CannotRejoin(PortError):
    code = "CANNOT_REJOIN"


@dataclass(frozen=True, slots=True)
class Owner:
    chain_id: str
    consensus_key: str
    rejoining: bool
    complete: bool
    """False while the logs are being made: a crash in between must not leave a journal that looks like one."""


def owner_of(disk: Disk) -> Owner | None:
    try:
        return Owner(**json.loads(disk.read(OWNER)))
    except NoSuchFile:
        return None
    except (ValueError, TypeError) as error:
        raise WrongOwner(f"{OWNER} in the data directory is damaged; restore it from a copy of this machine") from error


def check_owner(disk: Disk, chain_id: bytes, key: bytes) -> None:
    """Raises NotInitialised or WrongOwner unless this key may go on here."""
    owner = owner_of(disk)
    if owner is None:
        raise NotInitialised(
            "the data directory is not initialised; run `quorate node init`. If this validator has run before, with "
            f"another directory or on another machine, bring that directory back, or see {REJOIN}"
        )
    _check_same(owner, chain_id, key)
    if not owner.complete:
        again = f" {REJOIN}" if owner.rejoining else ""
        raise NotInitialised(f"initialisation was cut short; run `quorate node init{again}` again")


def _check_same(owner: Owner, chain_id: bytes, key: bytes) -> None:
    if owner.chain_id != chain_id.hex():
        raise WrongOwner(f"the data directory belongs to chain {owner.chain_id}, not to {chain_id.hex()}")
    if owner.consensus_key != key.hex():
        raise WrongOwner(
            f"the data directory holds the votes of the validator with the consensus key {owner.consensus_key}, not of "
            f"{key.hex()}; check [node] keys and data_dir"
        )


async def create(ports: Ports, chain_id: bytes, key: bytes, validators: int, *, rejoin: bool) -> None:
    """Make the logs of a validator that has never voted or, to rejoin, of one that has lost its journal."""
    disk = ports.disk
    disk.lock(LOCK)
    if rejoin and validators < LEAST_FOR_REJOINING:
        raise CannotRejoin(
            f"a chain of {validators} cannot take back a validator that lost its journal: the others are too few to "
            "vouch for how far it had voted. Restore the journal, or start a chain with other keys"
        )
    owner = owner_of(disk)
    if owner is not None:
        _check_same(owner, chain_id, key)
        _check_again(disk, owner, rejoin)
    elif not rejoin and (disk.list(f"{JOURNAL}/") or Store(ports.kv, chain_id).executed() is not None):
        raise AlreadyInitialised(
            f"there are files of a validator in the data directory, though no {OWNER}; restore that file, or move the "
            "directory away"
        )
    if rejoin and (owner is None or owner.complete) and disk.list(f"{JOURNAL}/"):
        raise AlreadyInitialised(
            f"there is a journal in the data directory; with it nothing needs to be rejoined. If it is corrupt, move "
            f"{JOURNAL}/ away, keep it as evidence, and run this again"
        )
    making = Owner(chain_id.hex(), key.hex(), rejoin, complete=False)
    await disk.write_whole(OWNER, _bytes(making))
    for name in disk.list(f"{JOURNAL}/"):
        disk.unlink(name)
    await initialise(ports, rejoin=rejoin)
    await disk.write_whole(OWNER, _bytes(replace(making, complete=True)))


def _check_again(disk: Disk, owner: Owner, rejoin: bool) -> None:
    """Whether initialising may be tried in a directory where it was tried before."""
    if not owner.complete and owner.rejoining and not rejoin:
        raise CannotRejoin(f"this validator was about to rejoin; run `quorate node init {REJOIN}`")
    if owner.complete and not rejoin:
        lost = "" if disk.list(f"{JOURNAL}/") else f". Its journal is gone: restore it, or see {REJOIN}"
        raise AlreadyInitialised(f"the data directory is initialised already; start the node{lost}")


def _bytes(owner: Owner) -> bytes:
    return json.dumps(asdict(owner), indent=2).encode() + b"\n"
