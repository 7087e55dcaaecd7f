"""What a start makes of the files and rows that are there: each whole blob has both, or it is not whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from chain.unixfs import Manifest
from fl.blobs import BlobKind
from node.data.blanks import DIRECTORY
from node.data.index import BlobIndex, Staged, lose, vanish
from node.data.staging import part_name, whole_name
from node.ports import Disk, Kv

_PAGE = 256


@dataclass(slots=True)
class Recovered:
    count: int = 0
    size_bytes: int = 0
    staged: list[tuple[bytes, Staged, Manifest, bool]] = field(default_factory=list)
    """The last: is there a file that may hold some of its leaves?"""


def recover(disk: Disk, kv: Kv, index: BlobIndex) -> Recovered:
    found = Recovered()
    names = set(disk.list(DIRECTORY))
    last: bytes | None = None
    while page := index.page(last, _PAGE):
        last = page[-1].cid
        for each in page:
            name = whole_name(each.cid)
            if name in names and disk.size(name) == each.size_bytes:
                names.discard(name)
                found.count += 1
                found.size_bytes += each.size_bytes
            else:
                kv.write(*lose(each.cid, each.size_bytes, each.kind, each.account), sync=True)
    for cid, row in list(index.staged()):
        manifest = index.manifest(cid, row.size_bytes)
        if manifest is None:
            kv.write({}, vanish(cid, BlobKind(row.kind), None))
            continue
        whole, part = whole_name(cid), part_name(cid)
        if whole in names:
            # It had its name and not yet its row, or no longer.
            disk.rename(whole, part)
            names.discard(whole)
            names.add(part)
        if part in names and (disk.size(part) or 0) > row.size_bytes:
            # Leaves are only ever written within, so what lies beyond would stay.
            disk.truncate(part, row.size_bytes)
        found.staged.append((cid, row, manifest, part in names))
        names.discard(part)
    for name in sorted(names):
        disk.unlink(name)
    return found
