"""How every kernel is compiled: when it is first called, so that importing one costs nothing.

Never `fastmath` (results would depend on the processor) and never `parallel` (numba's pool aborts the process
when two threads enter it). A kernel releases the interpreter's lock, so that the caller's threads run side by
side. The cache is keyed by a kernel's own file alone: a kernel calls nothing that is defined elsewhere, and no other
kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any, TypeVar, cast

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

F = TypeVar("F", bound=Callable[..., Any])


class Kernel:
    """Called as the function that it was made from."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.python = function
        update_wrapper(self, function)

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        import numba

        return cast(Callable[..., Any], numba.njit(cache=True, **OPTIONS)(self.python))

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)


def kernel(function: F) -> F:
    return cast(F, Kernel(function))
