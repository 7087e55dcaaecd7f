"""Files that no row speaks of, and that are to go."""

from __future__ import annotations

from collections.abc import Callable

from node.ports import Disk, DiskFailure, NoSuchFile


class Strays:
    """Those that could not be removed: they are tried again, or the next start removes them."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._left: dict[str, bytes] = {}
        """With the CID that they had."""

    def remove(self, name: str, cid: bytes) -> None:
        try:
            self._disk.unlink(name)
        except NoSuchFile:
            pass
        except DiskFailure:
            self._left[name] = cid

    def try_again(self, in_use: Callable[[str, bytes], bool]) -> None:
        """But for those whose name another file has got meanwhile."""
        left, self._left = self._left, {}
        for name, cid in left.items():
            if not in_use(name, cid):
                self.remove(name, cid)
