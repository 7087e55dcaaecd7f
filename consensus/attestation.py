"""What validators say about what they computed: the state after a block, the model of a round.

Both votes are deterministic, so they need no journal: after a restart they are computed and signed again. A quorum
makes a certificate. A validator whose own value differs from a certified one is broken, not outvoted: it raises an
alarm, and signs no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from chain.certificate import (
    Certificate,
    Executed,
    Result,
    ValidatorSet,
    Vote,
    VoteKind,
    assemble,
    read_subject,
    sign_vote,
    verify_certificate,
    verify_vote,
)
from chain.codec import CodecError, encode
from chain.keys import SigningKey
from consensus.effects import ALL, Alarm, Misbehaviour, Now, Output, PeerUp, Received, Send, Tick

HEIGHTS_KEPT = 256
ROUNDS_KEPT = 64
"""Of open rounds, for each signer: a peer that votes for rounds without end displaces its own votes only."""
RESEND_MS = 1_000

RoundKey = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class BlockExecuted:
    height: int
    block: bytes
    state_root: bytes


@dataclass(frozen=True, slots=True)
class RoundComputed:
    result: Result


@dataclass(frozen=True, slots=True)
class RoundOver:
    """The state machine has applied a result, or given the round up."""

    job: bytes
    round: int


@dataclass(frozen=True, slots=True)
class StateCertified:
    certificate: Certificate
    subject: Executed


@dataclass(frozen=True, slots=True)
class ResultCertified:
    certificate: Certificate
    subject: Result


class Attestation:
    def __init__(self, chain_id: bytes, validators: ValidatorSet, me: int | None, key: SigningKey | None) -> None:
        self.chain_id = chain_id
        self._key = key
        self.newest: tuple[Certificate, Executed] | None = None
        self._own_states: dict[int, Executed] = {}
        self._certified_roots: dict[int, bytes] = {}
        self._own_results: dict[RoundKey, Result] = {}
        self._certified_results: dict[RoundKey, Certificate] = {}
        self._silent = False
        self._said_ms = 0
        self._final_height = 0
        self._set(validators, me)

    def _set(self, validators: ValidatorSet, me: int | None) -> None:
        self.validators = validators
        self.me = me
        self._state_votes: dict[int, dict[int, Vote]] = {}
        self._result_votes: dict[RoundKey, dict[int, Vote]] = {}
        self._rounds_of: dict[int, dict[RoundKey, None]] = {}

    def new_epoch(self, now: Now, validators: ValidatorSet, me: int | None, key: SigningKey | None) -> Output:
        """Whatever the last set certified is signed anew by this one."""
        self._set(validators, me)
        self._key = key
        self._certified_results = {}
        out = Output()
        for subject in [self._own_states[height] for height in sorted(self._own_states)][-1:]:
            self._say(now, out, VoteKind.EXECUTED, subject)
        for result in list(self._own_results.values()):
            self._say(now, out, VoteKind.RESULT, result)
        return out

    def advance(self, final_height: int) -> None:
        self._final_height = max(self._final_height, final_height)

    def certified_height(self) -> int:
        """0 before anything is certified, which may be the state that the genesis gives."""
        return max(0, self._certified_to())

    def _certified_to(self) -> int:
        return self.newest[1].height if self.newest is not None else -1

    def knows(self, height: int, state_root: bytes) -> bool:
        """Whether this root is certified, by a certificate seen here or as an ancestor of a certified state."""
        if self._certified_roots.get(height) == state_root:
            return True
        own = self._own_states.get(height)
        return own is not None and own.state_root == state_root and height <= self._certified_to()

    def open_results(self) -> list[RoundKey]:
        return list(self._own_results)

    def deadline(self) -> int | None:
        return self._said_ms + RESEND_MS if self._unheard() else None

    def step(self, now: Now, event: object) -> Output:
        out = Output()
        match event:
            case BlockExecuted(height, block, state_root):
                self._executed(now, out, Executed(height, block, state_root))
            case RoundComputed(result):
                self._computed(now, out, result)
            case RoundOver(job, number):
                self._forget((job, number))
            case Received(peer, Vote() as vote):
                self._vote(now, out, peer, vote)
            case Received(peer, Certificate() as certificate):
                self._certificate(now, out, peer, certificate)
            case PeerUp(peer):
                out.send += [Send(peer, self.newest[0])] if self.newest is not None else []
                self._repeat(out, peer)
            case Tick():
                if self._unheard() and now.mono_ms >= self._said_ms + RESEND_MS:
                    self._said_ms = now.mono_ms
                    self._repeat(out, ALL)
            case _:
                raise TypeError(f"attestation takes no {type(event).__name__}")
        return out

    # Own values

    def _executed(self, now: Now, out: Output, subject: Executed) -> None:
        self._own_states[subject.height] = subject
        for height in [height for height in self._own_states if height <= subject.height - HEIGHTS_KEPT]:
            del self._own_states[height]
        self._compare_state(out)
        if subject.height > self._certified_to():
            self._say(now, out, VoteKind.EXECUTED, subject)

    def _computed(self, now: Now, out: Output, result: Result) -> None:
        key = (result.job, result.round)
        self._own_results[key] = result
        self._compare_result(out, key)
        self._say(now, out, VoteKind.RESULT, result)

    def _say(self, now: Now, out: Output, kind: VoteKind, subject: Executed | Result) -> None:
        if self.me is None or self._key is None or self._silent:
            return
        vote = sign_vote(self._key, self.chain_id, kind, self.validators.epoch, encode(subject), self.me)
        self._said_ms = now.mono_ms
        out.send.append(Send(ALL, vote))
        self._count(now, out, vote, subject)

    def _unheard(self) -> bool:
        """Is there a vote of mine that may not have reached those who need it?"""
        newest = max(self._own_states, default=-1)
        return self.me is not None and (newest > self._certified_to() or bool(self._own_results))

    def _repeat(self, out: Output, peer: int) -> None:
        if self.me is None or self._silent:
            return
        newest = max(self._own_states, default=-1)
        if newest > self._certified_to():
            vote = self._state_votes.get(newest, {}).get(self.me)
            out.send += [Send(peer, vote)] if vote is not None else []
        for key in self._own_results:
            vote = self._result_votes.get(key, {}).get(self.me)
            out.send += [Send(peer, vote)] if vote is not None else []

    # What others say

    def _vote(self, now: Now, out: Output, peer: int, vote: Vote) -> None:
        if vote.epoch != self.validators.epoch or vote.signer >= self.validators.n:
            return
        subject = _read(vote.kind, vote.subject)
        if subject is None:
            out.events.append(Misbehaviour(peer, "undecodable vote"))
            return
        if isinstance(subject, Executed):
            known = self._state_votes.get(subject.height, {}).get(vote.signer)
            in_window = self._certified_to() < subject.height <= self._final_height + HEIGHTS_KEPT
        else:
            known = self._result_votes.get((subject.job, subject.round), {}).get(vote.signer)
            in_window = True
        if known is not None or not in_window:
            return
        if not verify_vote(self.chain_id, self.validators, vote):
            out.events.append(Misbehaviour(peer, "a vote with a bad signature"))
            return
        self._count(now, out, vote, subject)

    def _count(self, now: Now, out: Output, vote: Vote, subject: Executed | Result) -> None:
        if isinstance(subject, Executed):
            votes = self._state_votes.setdefault(subject.height, {})
        else:
            key = (subject.job, subject.round)
            mine = self._rounds_of.setdefault(vote.signer, {})
            mine[key] = None
            if len(mine) > ROUNDS_KEPT and vote.signer != self.me:
                oldest = next(iter(mine))
                del mine[oldest]
                of_oldest = self._result_votes[oldest]
                del of_oldest[vote.signer]
                if not of_oldest:
                    del self._result_votes[oldest]
            votes = self._result_votes.setdefault(key, {})
        votes[vote.signer] = vote
        same = [other for other in votes.values() if other.subject == vote.subject]
        if len(same) >= self.validators.quorum:
            self._certified(out, assemble(self.validators, same), subject)

    def _certificate(self, now: Now, out: Output, peer: int, certificate: Certificate) -> None:
        if certificate.epoch != self.validators.epoch:
            return
        subject = _read(certificate.kind, certificate.subject)
        if subject is None:
            out.events.append(Misbehaviour(peer, "undecodable certificate"))
            return
        if isinstance(subject, Executed):
            if self._certified_roots.get(subject.height) == subject.state_root:
                return
        elif (subject.job, subject.round) in self._certified_results:
            return
        if not verify_certificate(self.chain_id, self.validators, certificate):
            out.events.append(Misbehaviour(peer, "a certificate that does not verify"))
            return
        self._certified(out, certificate, subject)

    def _certified(self, out: Output, certificate: Certificate, subject: Executed | Result) -> None:
        if isinstance(subject, Executed):
            self._certified_roots[subject.height] = subject.state_root
            while len(self._certified_roots) > HEIGHTS_KEPT:
                del self._certified_roots[next(iter(self._certified_roots))]
            if subject.height <= self._certified_to():
                return
            self.newest = (certificate, subject)
            out.events.append(StateCertified(certificate, subject))
            self._compare_state(out)
            for height in [height for height in self._state_votes if height <= subject.height]:
                del self._state_votes[height]
        else:
            key = (subject.job, subject.round)
            if key in self._certified_results:
                return
            self._certified_results[key] = certificate
            while len(self._certified_results) > ROUNDS_KEPT * 4:
                del self._certified_results[next(iter(self._certified_results))]
            out.events.append(ResultCertified(certificate, subject))
            self._compare_result(out, key)

    def _compare_state(self, out: Output) -> None:
        if self.newest is None:
            return
        certified = self.newest[1]
        own = self._own_states.get(certified.height)
        if own is not None and own != certified:
            self._silent = True
            sentence = (
                f"the state after height {certified.height} is {own.state_root.hex()} here, but a quorum certified "
                f"{certified.state_root.hex()}: this node's disk or software is broken"
            )
            out.events.append(Alarm("ROOT_DIVERGED", sentence))

    def _compare_result(self, out: Output, key: RoundKey) -> None:
        certificate, own = self._certified_results.get(key), self._own_results.get(key)
        if certificate is not None and own is not None and certificate.subject != encode(own):
            self._silent = True
            sentence = (
                f"round {key[1]} of job {key[0].hex()} was computed differently here than by a quorum: this machine's "
                "arithmetic or software is broken, and it signs no more results until it is restarted and passes its "
                "golden vectors"
            )
            out.events.append(Alarm("RESULT_DIVERGED", sentence))

    def _forget(self, key: RoundKey) -> None:
        self._own_results.pop(key, None)
        self._certified_results.pop(key, None)
        self._result_votes.pop(key, None)
        for mine in self._rounds_of.values():
            mine.pop(key, None)


def _read(kind: int, subject: bytes) -> Executed | Result | None:
    if kind not in (VoteKind.EXECUTED, VoteKind.RESULT):
        return None
    try:
        found = read_subject(kind, subject)
    except CodecError:
        return None
    assert isinstance(found, Executed | Result), "the kind is one of these"
    return found
