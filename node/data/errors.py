"""What can be wrong with a blob that somebody wants kept, each with a code and a sentence for whoever sent it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from node.ports import DiskFailure, DiskFull, PortError

__all__ = [
    "Discarded",
    "NoSpace",
    "QuotaExceeded",
    "StaleMark",
    "TooLarge",
    "Unfinished",
    "WrongManifest",
    "beyond_doubt",
    "room",
]


class WrongManifest(PortError):
    """The leaves' digests are not those of the file that the CID names."""

    code = "WRONG_MANIFEST"


class TooLarge(PortError):
    code = "BLOB_TOO_LARGE"


class NoSpace(PortError):
    """The disk's reserve would be used up. Nothing is broken: it works again once something was freed."""

    code = "NO_SPACE"


class QuotaExceeded(PortError):
    code = "QUOTA_EXCEEDED"


class Unfinished(PortError):
    """Leaves are missing, so there is nothing yet to be published."""

    code = "BLOB_UNFINISHED"


class Discarded(PortError):
    """The staged blob was thrown away meanwhile; whoever still wants it stages it anew."""

    code = "BLOB_DISCARDED"


class StaleMark(PortError):
    """The roots belong to a mark that another one, or a restart, has replaced."""

    code = "STALE_MARK"


@contextmanager
def room() -> Iterator[None]:
    """A file that found no room is given up, and all goes on: the reserve is only a forecast."""
    try:
        yield
    except DiskFull as error:
        raise NoSpace(str(error)) from error


@contextmanager
def beyond_doubt() -> Iterator[None]:
    """Rows and directories are not given up so easily. LevelDB's log is undefined after a write that found no room (the
    next start may lose what was written and synced later), and a directory whose sync failed is failed for good."""
    try:
        yield
    except DiskFull as error:
        raise DiskFailure(f"{error}; this process has to start again") from error
