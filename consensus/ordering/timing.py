"""When a view is given up, when a leader may propose, when to say things again; in monotonic milliseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from chain.genesis import Params
from consensus.effects import Now
from consensus.lineage import Lineage
from consensus.ordering.view import Slot, View

RESEND_MS = 1_000
STANDSTILL_MS = 10_000
FREE_FAILURES = 3
"""Views without finality before the timeouts begin to grow."""
SILENT_VIEWS_PER_VALIDATOR = 4

NO_PROPOSAL = "no proposal in time"
NO_NOTARIZATION = "no notarization in time"
LEADER_INACTIVE = "the leader has been silent for long"


class Timing:
    def __init__(self, params: Params, n: int, f: int) -> None:
        self._params = params
        self._n = n
        self._f = f
        self.interval_ms = params.min_block_interval_ms
        """Between blocks now."""
        self.is_pending = False
        self.next_ms: int | None = None
        self.given_up: Counter[tuple[str, int]] = Counter()
        """Views nullified here, by reason and leader."""
        self._pending_since = 0
        self._entered_ms = 0
        self._number = 1
        self._leader = 0
        self._fruitless = 0
        self._heard: list[int] = [0] * n
        self._nullified_ms: int | None = None
        self._final_ms = 0
        self._said_ms = 0
        self._tip = b""
        self._tip_seen_ms = 0
        self._seen: dict[bytes, int] = {}
        self._wakes: list[int] = []

    @property
    def reasons(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for (reason, _), count in self.given_up.items():
            counts[reason] += count
        return counts

    # What happened

    def entered(self, now: Now, leader: int, number: int, final_view: int) -> None:
        if number > self._number and self._leader not in self.inactive():
            self._fruitless += 1
        if number <= final_view + 1:
            self._fruitless = 0
        self._number, self._leader = number, leader
        self._entered_ms = now.mono_ms
        self._nullified_ms = None

    def heard(self, signer: int, number: int) -> None:
        self._heard[signer] = max(self._heard[signer], number)

    def restarted(self, number: int) -> None:
        """Nobody has been silent while this validator was not there to listen."""
        self._heard = [max(heard, number) for heard in self._heard]

    def saw(self, identity: bytes, now: Now) -> None:
        self._seen.setdefault(identity, now.mono_ms)

    def forget(self, keep: Callable[[bytes], bool]) -> None:
        self._seen = {identity: at for identity, at in self._seen.items() if keep(identity)}

    def finalized(self, now: Now) -> None:
        self._fruitless = 0
        self._final_ms = now.mono_ms

    def nullified(self, now: Now, reason: str) -> None:
        self._nullified_ms = now.mono_ms
        self.given_up[reason, self._leader] += 1

    def pend(self, now: Now, pending: bool, due_in: int | None, tip: bytes) -> None:
        if tip != self._tip:
            self._tip, self._tip_seen_ms = tip, now.mono_ms
        heartbeat_ms = self._tip_seen_ms + self._params.heartbeat_ms
        if due_in is not None and due_in > 0:
            self._wakes.append(now.mono_ms + due_in)
        pending = pending or (due_in is not None and due_in <= 0) or now.mono_ms >= heartbeat_ms
        if pending and not self.is_pending:
            self._pending_since = now.mono_ms
        if not pending:
            self._wakes.append(heartbeat_ms)
        self.is_pending = pending

    def wake_in(self, now: Now, delay_ms: int) -> None:
        self._wakes.append(now.mono_ms + delay_ms)

    # What is due

    def inactive(self) -> set[int]:
        """Validators passed over at once: silent for long, at most f of them, the longest silent first."""
        limit = SILENT_VIEWS_PER_VALIDATOR * self._n
        if self._number - min(self._heard) < limit:
            return set()
        silent = sorted((at, who) for who, at in enumerate(self._heard) if self._number - at >= limit)
        return {who for _, who in silent[: self._f]}

    def _grown(self, base_ms: int) -> int:
        exponent = max(0, self._fruitless - FREE_FAILURES)
        if exponent > 32:
            return self._params.timeout_cap_ms
        return min(base_ms * int(3**exponent) // int(2**exponent), self._params.timeout_cap_ms)

    def _patience_ms(self, view: View) -> int:
        deltas = 2 if view.slot is Slot.EMPTY else 3
        return self._grown(deltas * self._params.delta_ms + self.interval_ms)

    def _gives_up_at(self, view: View) -> int:
        since = max(self._entered_ms, self._pending_since)
        return since if view.leader in self.inactive() else since + self._patience_ms(view)

    def expired(self, now: Now, view: View) -> str | None:
        if not self.is_pending or view.my_nullify is not None or now.mono_ms < self._gives_up_at(view):
            return None
        if view.leader in self.inactive():
            return LEADER_INACTIVE
        return NO_PROPOSAL if view.slot is Slot.EMPTY else NO_NOTARIZATION

    def too_soon(self, now: Now, parent: Lineage) -> bool:
        """A leader waits for the interval since it first saw the parent, and while its header would be ahead."""
        seen_ms = self._seen.get(parent.digest)
        paced_ms = now.mono_ms if seen_ms is None else seen_ms + self.interval_ms
        ahead_ms = parent.time_ms + self._params.min_block_interval_ms - now.wall_ms - self._params.drift_ms
        wait_ms = max(paced_ms - now.mono_ms, ahead_ms)
        if wait_ms > 0:
            self._wakes.append(now.mono_ms + wait_ms)
        return wait_ms > 0

    def resend_due(self, now: Now) -> bool:
        if self._nullified_ms is None or now.mono_ms - self._nullified_ms < RESEND_MS:
            return False
        self._nullified_ms = now.mono_ms
        return True

    def standstill_due(self, now: Now) -> bool:
        if not self.is_pending or now.mono_ms < self._standstill_ms():
            return False
        self._said_ms = now.mono_ms
        return True

    def _standstill_ms(self) -> int:
        return max(self._final_ms, self._pending_since, self._said_ms) + STANDSTILL_MS

    def arm(self, now: Now, view: View, may_give_up: bool) -> None:
        """Set the time of the next Tick; nothing else in this core wakes it."""
        if view.my_nullify is not None and self._nullified_ms is None:
            self._nullified_ms = now.mono_ms
        wakes, self._wakes = self._wakes, []
        if self._nullified_ms is not None:
            wakes.append(self._nullified_ms + RESEND_MS)
        if self.is_pending:
            wakes.append(self._standstill_ms())
            if may_give_up:
                wakes.append(self._gives_up_at(view))
        self.next_ms = min(wakes, default=None)
