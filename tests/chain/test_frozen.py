from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from chain.frozen import record


@record
class Point:
    x: int
    y: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usual:
    x: int
    y: int = 0
    names: tuple[str, ...] = ()


def test_a_record_is_made_like_any_dataclass() -> None:
    assert Point(1) == Point(1, 0) == Point(x=1, y=0, names=()) == replace(Point(7), x=1)
    assert repr(Point(1, names=("a",))).partition("(")[2] == repr(Usual(1, names=("a",))).partition("(")[2]
    assert hash(Point(1, 2)) == hash(Usual(1, 2))
    assert type(Point(1)) is Point and isinstance(Point(1), Point)
    assert copy.deepcopy(Point(1, 2)) == pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2)


@pytest.mark.parametrize("wrong", [{}, {"x": 1, "z": 2}, {"y": 1}])
def test_a_record_is_not_made_of_fields_that_it_does_not_have(wrong: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\)"):
        Point(**wrong)  # type: ignore[arg-type]


def test_nothing_of_a_record_can_be_changed_or_added() -> None:
    point = Point(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x
    with pytest.raises((FrozenInstanceError, TypeError)):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises((FrozenInstanceError, TypeError)):
        point.__class__ = Usual  # type: ignore[assignment]
    assert point == Point(1) and not hasattr(point, "__dict__")
