"""What an aggregation rule is: how the updates of a round become the mean that its model moves by.

Every rule gives, for each group of tensors, int64 sums A and a denominator den, and the model becomes
x' = canon(f32(f64(x) + f64(A)/f64(den))). There are three ways to get there.

A `Streaming` rule adds an update as it comes, however many there are: A is the sum of q = round(x·c), and the rule says
only what c is. An `AtOnce` rule looks at all updates of the round together, tile by tile, when its log is frozen. An
`Optimising` rule is a streaming one with a memory: from d = A/den follow new *moments*, which are stored beside the
model, and from these the model.

A rule is one object of immutable facts and pure functions. What it computes with, everybody computes alike: integers,
or IEEE-754 + − × ÷ √ in a fixed order.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.records import JobRules, RuleSetting
from fl.tensors.grid import MAX_UPDATES, Grid

DENSE = frozenset({"f32", "f16", "bf16", "q8"})
"""Encodings that say something of every value."""

RATES = (2.0**-60, 2.0**20)
"""Limits of a positive real setting."""
BELOW_ONE = 1.0 - 2.0**-53
"""The largest float64 below 1."""

MAX_AT_ONCE = 4096
"""Updates that an `AtOnce` rule looks at together, unless it says less."""

Work: TypeAlias = Callable[[], int]
Spread: TypeAlias = Callable[[Sequence[Work]], Iterable[int]]
"""Runs every piece of work once, in any order and on any threads, and returns their results."""

Settings: TypeAlias = Mapping[str, int | float]
"""Every setting of a rule by its name: an int or a float as its kind says."""


class SettingKind(StrEnum):
    INTEGER = "integer"
    REAL = "real"


@dataclass(frozen=True, slots=True)
class Setting:
    """From `low` to `high`, both included. Without a default, a job must give it."""

    name: str
    kind: SettingKind
    low: int | float
    high: int | float
    default: int | float | None = None

    def read(self, value: int) -> int | float:
        """From what a job's rules hold; raises Refused("BAD_RULES") beyond the limits."""
        if self.kind == SettingKind.INTEGER:
            read: int | float = value
        else:
            (read,) = struct.unpack(">d", value.to_bytes(8, "big"))
        # A NaN fails both comparisons.
        if not self.low <= read <= self.high:
            raise Refused("BAD_RULES", f"The rule's setting {self.name} is {self.low} to {self.high}, not {read}.")
        return read

    def written(self, value: int | float) -> RuleSetting:
        if self.kind == SettingKind.INTEGER:
            if not isinstance(value, int) or isinstance(value, bool):
                raise Refused("BAD_RULES", f"The rule's setting {self.name} is an integer, not {value!r}.")
            bits = value
        else:
            # Adding zero makes one zero of the two.
            bits = int.from_bytes(struct.pack(">d", float(value) + 0.0), "big") if isfinite(value) else -1
        if bits not in range(2**64):
            raise Refused("BAD_RULES", f"The rule's setting {self.name} is {self.low} to {self.high}, not {value!r}.")
        self.read(bits)
        return RuleSetting(self.name, bits)


class Rule(ABC):
    name: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    """Sorted by name."""
    encodings: ClassVar[frozenset[str]] = DENSE
    weighted: ClassVar[bool] = False
    """Whether updates may weigh differently."""
    groups: ClassVar[bool] = False
    """Whether an update may change a group of tensors alone."""
    stale: ClassVar[bool] = False
    """Whether it goes with jobs without rounds."""
    moments: ClassVar[tuple[str, ...]] = ()
    """Names of what it keeps beside the model, sorted."""
    all_at_once: ClassVar[bool]
    most: ClassVar[int] = MAX_UPDATES
    """Updates that a round of it may take."""

    def complaint(self, settings: Settings, rules: JobRules) -> str:
        """What is wrong with a job of this rule, beyond what the facts above say of it; nothing, mostly."""
        return ""

    def fewest(self, settings: Settings) -> int:
        """Updates without which it means nothing."""
        return 1

    def effort(self, updates: int) -> int:
        """What so many updates take, in units of what one takes that is summed: the time for a result grows with it."""
        return updates


class Streaming(Rule):
    all_at_once = False
    clips: ClassVar[bool] = False
    """Whether c depends on the norm of the update; then values are rounded toward zero, else to the nearest, ties to
    even."""

    def factor(self, settings: Settings, grid: Grid, weight: int, norm: int) -> float:
        """c of an update: w·2^G or less, with at most 29 significant bits, so that x·c is exact. `norm` is at least
        that of the update, in steps of 2^−G0; 0 for a rule that does not clip."""
        return grid.factor(weight)


class ClosedUpdates(Protocol):
    """All updates of one group, in the order of the round's log."""

    @property
    def count(self) -> int: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def edges(self) -> Sequence[int]:
        """Tile t holds the values edges[t] to edges[t + 1] of every update. A rule's result does not depend on where
        these lie."""

    @property
    def spread(self) -> Spread: ...

    def tile(self, tile: int, positions: Sequence[int], out: NDArray[np.float32]) -> None:
        """Writes a tile, one row for each of these updates. For any thread."""


@dataclass(frozen=True, slots=True)
class Mean:
    denominator: int
    """Up to 2^62, and exact in float64."""
    scores: tuple[int, ...] = ()
    """What the rule found out about each update, 0 or more and below 2^256; or nothing."""


class AtOnce(Rule):
    all_at_once = True
    most = MAX_AT_ONCE

    @abstractmethod
    def reduce(self, updates: ClosedUpdates, sums: NDArray[np.int64], settings: Settings) -> Mean:
        """Writes A, which comes as zeros, within ±2^62. Work that takes long goes to `updates.spread`, in pieces of
        not much more than a tile: others have their turn between them."""


class Optimising(Streaming):
    @abstractmethod
    def advance(
        self,
        moment: str,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        """Writes what a stretch of a moment becomes, canonical. Returns the largest magnitude written, as F32 bits."""

    @abstractmethod
    def move(
        self,
        settings: Settings,
        step: int,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        moments: Sequence[NDArray[np.float32]],
    ) -> int:
        """Writes what a stretch of the model becomes with these new moments, canonical. `step` counts from 1. Returns
        the largest magnitude written, as F32 bits."""


def settings_of(rule: Rule, given: Sequence[RuleSetting]) -> Settings:
    """Those of a job: raises Refused("BAD_RULES") unless they are known, sorted, within their limits and complete."""
    names = [each.name for each in given]
    known = {each.name: each for each in rule.settings}
    if names != sorted(set(names)):
        raise Refused("BAD_RULES", "The rule's settings are sorted by name, and each is given once.")
    for each in given:
        if each.name not in known:
            listed = ", ".join(known) or "none"
            raise Refused("BAD_RULES", f"The rule {rule.name} has no setting {each.name!r}; it has: {listed}.")
    values = {each.name: known[each.name].read(each.value) for each in given}
    for setting in rule.settings:
        if setting.name not in values:
            if setting.default is None:
                raise Refused("BAD_RULES", f"The rule {rule.name} needs the setting {setting.name}.")
            values[setting.name] = setting.default
    return values


def written_settings(rule: Rule, given: Settings) -> tuple[RuleSetting, ...]:
    """As a job's rules hold them."""
    known = {each.name: each for each in rule.settings}
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise Refused("BAD_RULES", f"The rule {rule.name} has no setting {name!r}; it has: {listed}.")
    return tuple(known[name].written(given[name]) for name in sorted(given))
