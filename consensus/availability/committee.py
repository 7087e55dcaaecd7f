"""Who may sign for whom: this epoch's validators, those of the last, and this validator among them."""

from __future__ import annotations

from collections.abc import Iterable

from chain.availability import AvailabilityCertificate, verify_availability
from chain.batch import SignedBatch
from chain.certificate import Available, ValidatorSet, Vote, VoteKind, seats_in, sign_vote, verify_vote
from chain.hashing import Domain, signing_bytes
from chain.keys import SigningKey, verify


class Committee:
    """Peers are indices into the current set; what outlives an epoch is known by its consensus key.

    Those who left with the last epoch still serve what they signed for, so as sources of bytes they are numbered on
    from the current set's indices.
    """

    def __init__(
        self,
        chain_id: bytes,
        validators: ValidatorSet,
        me: int | None,
        key: SigningKey,
        previous: ValidatorSet | None,
    ) -> None:
        self.chain_id = chain_id
        self.current = validators
        self.previous = previous
        self.me = me
        self.key = key
        self._index = _index(validators)
        self.leavers = self._left()

    def turn(self, validators: ValidatorSet, me: int | None, key: SigningKey) -> None:
        self.previous = self.current
        self.current = validators
        self.me = me
        self.key = key
        self._index = _index(validators)
        self.leavers = self._left()

    def _left(self) -> tuple[bytes, ...]:
        keys = [member.consensus_key for member in self.previous.members] if self.previous is not None else []
        return tuple(key for key in keys if key not in self._index and key != self.key.public)

    @property
    def has_left(self) -> bool:
        """Whether this validator was of the last set and is not of this one."""
        return self.me is None and self.previous is not None and self.previous.index_of(self.key.public) is not None

    @property
    def _known(self) -> list[ValidatorSet]:
        return [self.current] if self.previous is None else [self.previous, self.current]

    @property
    def epochs(self) -> frozenset[int]:
        return frozenset(validators.epoch for validators in self._known)

    def of(self, epoch: int) -> ValidatorSet | None:
        return next((validators for validators in self._known if validators.epoch == epoch), None)

    @property
    def peers(self) -> tuple[int, ...]:
        return tuple(index for index in range(self.current.n) if index != self.me)

    @property
    def sources(self) -> tuple[int, ...]:
        """All who may have bytes, the current peers first."""
        return (*self.peers, *range(self.current.n, self.current.n + len(self.leavers)))

    def source_with(self, key: bytes) -> int | None:
        if key in self.leavers:
            return self.current.n + self.leavers.index(key)
        return self.peer_with(key)

    def key_at(self, epoch: int, index: int) -> bytes | None:
        validators = self.of(epoch)
        if validators is None or index >= validators.n:
            return None
        return validators.members[index].consensus_key

    def peer_with(self, key: bytes) -> int | None:
        """The other validator of the current set that has this consensus key."""
        index = self._index.get(key)
        return None if index == self.me else index

    def is_peer(self, peer: int, epoch: int, index: int) -> bool:
        return self.key_at(epoch, index) == self.current.members[peer].consensus_key

    def is_signed_by_creator(self, reference: Available, signed: SignedBatch) -> bool:
        """`reference` must be of this batch; it saves hashing a megabyte again."""
        public = self.key_at(reference.epoch, reference.creator)
        if public is None:
            return False
        message = signing_bytes(Domain.BATCH, self.chain_id, reference.epoch, reference.batch)
        return verify(public, message, signed.signature)

    def is_valid_vote(self, vote: Vote) -> bool:
        validators = self.of(vote.epoch)
        return validators is not None and verify_vote(self.chain_id, validators, vote)

    def is_valid_certificate(self, certificate: AvailabilityCertificate, verified: Iterable[Vote]) -> bool:
        """`verified` are votes whose signatures need not be looked at again."""
        validators = self.of(certificate.epoch)
        return validators is not None and verify_availability(self.chain_id, validators, certificate, verified)

    @property
    def memberships(self) -> list[tuple[ValidatorSet, int]]:
        """The known sets that this validator's key belongs to, and its index in each."""
        found = ((validators, validators.index_of(self.key.public)) for validators in self._known)
        return [(validators, index) for validators, index in found if index is not None]

    def sign(self, kind: VoteKind, subject: bytes, epoch: int, signer: int) -> Vote:
        return sign_vote(self.key, self.chain_id, kind, epoch, subject, signer)

    def signers(self, certificate: AvailabilityCertificate) -> tuple[int, ...]:
        """Its signers as sources."""
        keys = (self.key_at(certificate.epoch, signer) for signer in seats_in(certificate.signers))
        found = (self.source_with(key) for key in keys if key is not None)
        return tuple(peer for peer in found if peer is not None)


def _index(validators: ValidatorSet) -> dict[bytes, int]:
    return {member.consensus_key: index for index, member in enumerate(validators.members)}
