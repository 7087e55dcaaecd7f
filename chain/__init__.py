"""What a chain is made of: bytes, hashes, keys, Merkle structures, and the records that organisations sign.

Here is everything that two strangers must agree on bit for bit before they can agree on anything else: the
canonical encoding (`codec`), domain-separated hashes (`hashing`), Ed25519 keys with the weak ones refused
(`keys`), content identifiers (`cid`), the state tree and the append-only log with their proofs (`tree`,
`log`), votes and certificates (`certificate`), transactions, batches and blocks, the genesis with all
on-chain parameters, and the check that an outsider makes who trusts no node (`light`).

What enters: bytes from anywhere, hostile until decoded. What leaves: frozen records, digests, and verdicts (a
bool, or one of the exceptions of this room). Nothing here does input or output, reads a clock or draws
randomness, and nothing here knows what federated learning is or how consensus is reached.
"""
