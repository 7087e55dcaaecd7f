"""What one seed plays: how many validators, under which parameters, which faults, and who of them lies.

Each seed draws a subset of everything that can go wrong, for what is always present hides what only shows in its
absence (swarm testing).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from chain.genesis import Params, check_params
from tests.simulation.loop import drawn_from


class Feature(StrEnum):
    DELAY = "delay"
    LOSS = "loss"
    DUPLICATION = "duplication"
    REORDERING = "reordering"
    PARTITIONS = "partitions"
    ONE_WAY = "one-way partitions"
    CLOGS = "clogs"
    CUTS = "cuts"
    SLOW_NODES = "slow nodes"
    SLOW_DISKS = "slow disks"
    SKEW = "clock skew"
    STEPS = "clock steps"
    DISK_FULL = "disk full"
    SYNC_FAILS = "failing syncs"
    CRASHES = "crashes"
    KILLS = "kills"
    AIMED_CRASHES = "crashes after a vote"
    CRASHES_IN_IO = "crashes within an operation"
    POWER_CUTS = "power cuts"
    DATA_KILLS = "killed data processes"
    BULK_CUTS = "cuts of bulk connections"
    LAST_WORDS = "lost for good at a promise, power cut for all"
    SOLITUDE = "lost for good in solitude"
    BARE_QUORUM = "power cuts of a bare quorum"


class Vice(StrEnum):
    """What a Byzantine validator does besides following the protocol."""

    EQUIVOCATE = "equivocating leader"
    DOUBLE_VOTE = "double voter"
    NULLIFY_AND_FINALIZE = "nullify-and-finalize voter"
    SILENT_LEADER = "silent leader"
    MUTE = "mute"
    FORGE = "forged certificates"
    STALE = "stale certificates"
    LIE_STATE = "wrong state votes"
    LIE_RESULT = "wrong result votes"
    WITHHOLD = "withheld batches"
    BAD_BATCH = "bad batches"
    NAME_UNCHECKED = "references to unchecked batches"
    NAME_STALE = "references to old batches"
    WRONG_PARENT = "wrong parents"
    RUSH_FORK = "forks before finality"
    MUTANT = "mutant proposals"
    BOAST = "false heights"
    GARBAGE = "garbage frames"
    TWIN = "twins"


GRAVE = (
    Vice.EQUIVOCATE,
    Vice.DOUBLE_VOTE,
    Vice.NULLIFY_AND_FINALIZE,
    Vice.NAME_UNCHECKED,
    Vice.NAME_STALE,
    Vice.WRONG_PARENT,
    Vice.RUSH_FORK,
    Vice.TWIN,
)
"""Those that would fork the chain, or order what nobody checked, if honest validators were less careful."""
LOUD = (Vice.FORGE, Vice.GARBAGE, Vice.BAD_BATCH)
"""Each act of these costs the link to whoever receives it, so a validator with them can do little else."""


TRAPS = (Feature.LAST_WORDS, Feature.SOLITUDE, Feature.BARE_QUORUM)
"""Laid for the moment at which a client trusts what it was told, or at which every vote counts. Some seeds have one."""
WITHOUT_OUTAGES = (Feature.DUPLICATION, Feature.REORDERING, Feature.SLOW_NODES)


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    n: int
    params: Params
    seconds: float
    """Of faults; the phase in which all must come right follows."""
    features: tuple[Feature, ...]
    byzantine: tuple[tuple[int, tuple[Vice, ...]], ...]
    """Validators that lie, with their vices."""
    doomed: tuple[int, ...]
    """Honest validators whose machines are lost for good, the disk with them."""
    rotten: int | None
    """A validator whose store changes a bit of its own accord."""
    trainers: int

    @property
    def f(self) -> int:
        return (self.n - 1) // 3

    @property
    def hasty(self) -> bool:
        """Whether batches expire without an outage."""
        return self.params.horizon == HASTY_HORIZON

    @property
    def liars(self) -> tuple[int, ...]:
        return tuple(index for index, _ in self.byzantine)


HASTY_HORIZON = 32
_SIZES = (4, 7, 10)
_SECONDS = {4: (8.0, 25.0), 7: (6.0, 16.0), 10: (5.0, 12.0)}
_INTERVALS_MS = {4: (50, 100, 200, 300, 500), 7: (150, 250, 400, 500), 10: (250, 400, 500)}


def draw(seed: int) -> Scenario:
    chance = drawn_from(seed, "scenario")
    n = chance.choices(_SIZES, (70, 20, 10))[0]
    share = chance.choice((0.1, 0.25, 0.4))
    features = tuple(feature for feature in Feature if feature not in TRAPS and chance.random() < share)
    faulty = _faulty(chance, n)
    byzantine, doomed, rotten = [], [], None
    for index in faulty:
        fate = chance.random()
        if fate < 0.7:
            byzantine.append((index, _vices(chance)))
        elif fate < 0.92 or rotten is not None:
            doomed.append(index)
        else:
            rotten = index
    params = _params(chance, n)
    low, high = _SECONDS[n]
    scenario = Scenario(
        seed=seed,
        n=n,
        params=params,
        seconds=round(chance.uniform(low, high), 1),
        features=features,
        byzantine=tuple(byzantine),
        doomed=tuple(doomed),
        rotten=rotten,
        trainers=chance.choice((2, 3, 4)),
    )
    haste = drawn_from(seed, "haste")
    if n == 4 and haste.random() < 0.1:
        scenario = _hasty(scenario, haste)
    else:
        scenario = _with_trap(scenario, drawn_from(seed, "trap"))
    check_params(scenario.params, n)
    return scenario


def _hasty(scenario: Scenario, chance: random.Random) -> Scenario:
    """Blocks without pause, so many that batches expire. Then an outage would be longer than a batch lives, and what
    was acknowledged could not outlive it: these seeds have no outages."""
    return replace(
        scenario,
        params=replace(
            scenario.params,
            min_block_interval_ms=50,
            heartbeat_ms=50,
            horizon=HASTY_HORIZON,
            execution_window=16,
        ),
        seconds=round(chance.uniform(6.0, 12.0), 1),
        features=tuple(feature for feature in scenario.features if feature in WITHOUT_OUTAGES),
        byzantine=tuple((index, (*vices, Vice.NAME_STALE)) for index, vices in scenario.byzantine),
        doomed=(),
    )


def _with_trap(scenario: Scenario, chance: random.Random) -> Scenario:
    if may_have_trap(scenario) and chance.random() < 0.7:
        return with_trap(scenario, chance.choice(TRAPS))
    return scenario


def may_have_trap(scenario: Scenario) -> bool:
    """Among four honest ones, of whom one may be lost for good."""
    return scenario.n == 4 and not scenario.byzantine and scenario.rotten is None and not scenario.hasty


def with_trap(scenario: Scenario, trap: Feature) -> Scenario:
    features = tuple(feature for feature in scenario.features if feature not in TRAPS)
    doomed = scenario.doomed or (scenario.seed % scenario.n,)
    return replace(scenario, features=(*features, trap), doomed=doomed)


def _faulty(chance: random.Random, n: int) -> list[int]:
    f = (n - 1) // 3
    count = f if chance.random() < 0.7 else chance.randrange(f + 1)
    return sorted(chance.sample(range(n), count))


def _vices(chance: random.Random) -> tuple[Vice, ...]:
    quiet = [vice for vice in Vice if vice not in LOUD]
    chosen = set(chance.sample(quiet, chance.choice((0, 1, 3, 5))))
    chosen.add(chance.choice(GRAVE))
    if chance.random() < 0.3:
        chosen.add(chance.choice(LOUD))
    return tuple(vice for vice in Vice if vice in chosen)


def _params(chance: random.Random, n: int) -> Params:
    interval_ms = chance.choice(_INTERVALS_MS[n])
    # With a short one, batches expire during an outage.
    short = chance.random() < 0.3 and interval_ms >= 200
    horizon = chance.choice((48, 64)) if short else 1_024
    return Params(
        min_block_interval_ms=interval_ms,
        delta_ms=chance.choice((50, 100, 250)),
        heartbeat_ms=chance.choice((1_000, 2_000, 5_000)),
        timeout_cap_ms=chance.choice((2_000, 4_000, 8_000)),
        horizon=horizon,
        execution_window=chance.choice((4, 16, horizon // 2 if short else 64)),
        aggregation_base_ms=chance.choice((2_000, 5_000)),
    )
