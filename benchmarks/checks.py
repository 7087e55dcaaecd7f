"""After the load: that nothing acknowledged is lost, by what every validator holds and by proofs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.campaign import Outcome
from benchmarks.figures import Check
from benchmarks.network import Validators
from cli.http import Place, fetch
from fl.client.network import AsyncNetwork, connect_async
from fl.execution import OK
from fl.records import Round
from fl.state import round_key

PROVEN = 64
"""Receipts of which the proof is asked for and verified."""
_PAGE = 100
CERTIFIED_S = 15.0


async def nothing_lost(validators: Validators, outcome: Outcome, home: Path) -> list[Check]:
    """A member's second update in a round is refused, so as many updates were sent as were acknowledged."""
    validators.level()
    jobs, wanted, drawn = outcome.jobs, outcome.acknowledged, outcome.drawn
    held = {name: sum(_updates_in(validators.net.members[name].rpc, job) for job in jobs) for name in validators.names}
    checks = [
        Check(
            f"{wanted:,} updates were acknowledged, and every validator's rounds hold as many"
            if set(held.values()) == {wanted}
            else f"{wanted:,} updates were acknowledged, and rounds hold {held}",
            set(held.values()) == {wanted},
        ),
        _one_state(validators),
    ]
    async with await connect_async(validators.net.network_file, home=home) as network:
        proven = await _proven(network, jobs, wanted)
        checks.append(Check(f"rounds proven by certificates hold {proven:,}", proven == wanted))
        some = random.Random(1).sample(drawn, min(PROVEN, len(drawn)))
        good = sum([await _is_proven(network, identity) for identity in some])
        checks.append(Check(f"{good} of {len(some)} receipts drawn from them are proven", good == len(some)))
    return checks


def _updates_in(rpc: str, job: str) -> int:
    """All rounds' accepted updates, by the validator's state."""
    count, cursor = 0, ""
    while True:
        page = fetch(Place(rpc), f"/v1/jobs/{job}/rounds?limit={_PAGE}{cursor}")
        count += sum(int(each["updates"]) for each in page["rounds"])
        if page["next"] is None:
            return count
        cursor = f"&cursor={page['next']}"


def _one_state(validators: Validators) -> Check:
    roots: dict[int, set[str]] = {}
    for name in validators.names:
        said = validators.status(name)
        roots.setdefault(said["executed_height"], set()).add(said["state_root"])
    return Check("validators at one height have one state", all(len(each) == 1 for each in roots.values()))


async def _proven(network: AsyncNetwork, jobs: Sequence[str], wanted: int) -> int:
    """Once the newest state is certified, which is a moment after it was executed."""
    ends = time.monotonic() + CERTIFIED_S
    while True:
        found = sum([await _proven_updates(network, bytes.fromhex(job)) for job in jobs])
        if found >= wanted or time.monotonic() > ends:
            return found
        await asyncio.sleep(1)


async def _proven_updates(network: AsyncNetwork, job: bytes) -> int:
    number = count = 0
    while (found := await network.record(Round, round_key(job, number + 1))) is not None:
        number, count = number + 1, count + found.updates.size
    return count


async def _is_proven(network: AsyncNetwork, identity: str) -> bool:
    found = await network.reader.receipt_anywhere(bytes.fromhex(identity))
    return found is not None and found[0].status == OK
