"""All that a data process is told before it begins: the first frame on its pipe.

It holds the link key, which the core has read under its passphrase already, and settings as the core has read them,
so that both processes of a validator can never stand on different configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import U16, U64, Count, Digest, Length, PublicKey

Text = Annotated[str, Length(0, 4096)]


@dataclass(frozen=True, slots=True)
class Place:
    host: Annotated[str, Length(1, 255)]
    port: U16


@dataclass(frozen=True, slots=True)
class Setup:
    chain: Digest
    consensus_key: PublicKey
    link_seed: Digest
    data_dir: Annotated[str, Length(1, 4096)]
    bulk: Place
    door: Place
    tls_cert: Text
    tls_key: Text
    cors: Annotated[tuple[Text, ...], Count(0, 256)]
    gateways: Annotated[tuple[Text, ...], Count(0, 64)]
    """Where a blob is asked for that no validator has: trustless gateways, by URL."""
    reserve_bytes: U64
    member_bytes: U64
    lease_ms: U64
    blob_bytes: U64
    sums_bytes: U64
    downloads: U16
    threads: U16
    requests_per_s: U64
    log_level: Annotated[str, Length(1, 16)]
    log_format: Annotated[str, Length(1, 16)]

    def __repr__(self) -> str:
        # The seed is nobody's business, a log's least of all.
        return f"Setup({self.data_dir})"
