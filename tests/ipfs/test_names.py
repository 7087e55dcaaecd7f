"""The names of files against another implementation: `ipfs-unixfs-importer`, profile `unixfs-v1-2025` of IPIP-499."""

from __future__ import annotations

from chain.cid import LEAF_BYTES, cid_text
from chain.unixfs import LINKS, manifest_cid
from tests.chain.files import manifest_of_pattern
from tests.ipfs.others import installed, run

EDGES = (0, 1, LEAF_BYTES, LINKS * LEAF_BYTES)
SIZES = sorted({max(0, edge + step) for edge in EDGES for step in (-1, 0, 1)} | {7 * LEAF_BYTES + 12_345})


@installed
async def test_files_have_the_names_that_another_implementation_gives_them() -> None:
    theirs = await run("import.mjs", *map(str, SIZES))
    assert theirs == [f"{size} {cid_text(manifest_cid(manifest_of_pattern(size)))}" for size in SIZES]
