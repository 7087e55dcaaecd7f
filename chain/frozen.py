"""Records: frozen dataclasses that are cheap to make.

The `__init__` that `dataclasses` writes for a frozen class sets each field by way of `object.__setattr__`, which finds
its slot by name: most of what making a record takes, and a block makes thousands. Here a record is filled while it is
of a class that has the same slots and is not frozen, and becomes what it is once it is whole. Whoever gets to see it
sees a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_become = vars(object)["__class__"].__set__
"""A frozen class lets nothing be set, its instances' class neither."""


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """As `dataclass(frozen=True, slots=True)`, for a class without ancestors whose defaults are immutable."""
    made = dataclass(frozen=True, slots=True)(cls)
    setattr(made, "__init__", _filling(made))  # noqa: B010
    return made


@cache
def unfrozen(cls: type) -> type:
    """Of whose instances the slots can be filled before they become those of `cls`."""
    return type(cls.__name__, (), {"__slots__": vars(cls)["__slots__"]})


def _filling(cls: Any) -> Callable[..., None]:
    names = [each.name for each in fields(cls)]
    known = {"become": _become, "unfrozen": unfrozen(cls), "cls": cls}
    known |= {f"default_{each.name}": each.default for each in fields(cls) if each.default is not MISSING}
    taken = [f"{name}=default_{name}" if f"default_{name}" in known else name for name in names]
    lines = [
        f"def __init__(self, {', '.join(taken)}):",
        "    become(self, unfrozen)",
        *(f"    self.{name} = {name}" for name in names),
        "    self.__class__ = cls",
    ]
    exec("\n".join(lines), known)
    made: Callable[..., None] = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made
