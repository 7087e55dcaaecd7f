"""What a process of ours asks of Python's garbage collector, once all that stays is loaded.

Reference counts free nearly everything: what one block, batch or round leaves holds no cycles, which tests see to. The
collector is there for the rest, exceptions that know their own frames and the like, and looks when `YOUNG_OBJECTS`
more containers were made than given back. So that many wait at most, with what hangs on them.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 20_000
"""Above what the blocks and updates on their way are made of, else it walks those, and finds nothing."""


def settle() -> None:
    gc.collect()
    # What has been loaded stays for good; the collector need not walk it while messages wait.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
