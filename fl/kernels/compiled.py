"""How every kernel is compiled.

Never `fastmath` (results would depend on the processor) and never `parallel` (numba's pool aborts the process
when two threads enter it). A kernel releases the interpreter's lock, so that the caller's threads run side by
side. The cache is keyed by a kernel's own file alone: a kernel calls nothing that is defined in another file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    return cast(F, numba.njit(cache=True, **OPTIONS)(function))
