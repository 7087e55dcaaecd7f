"""What a scenario is: a name, what it measures, its settings, and the function that performs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Case, Value
from benchmarks.network import Stage
from fl.client.errors import BadInput


@dataclass(frozen=True, slots=True)
class Setting:
    """`quick` is its value in the scenario's shortest form, in which everything happens and no figure means much."""

    usual: Value
    quick: Value
    meaning: str


class Settings(dict[str, Value]):
    """By attribute, as `settings.validators`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def numbers(self, name: str) -> list[int]:
        """Of a setting that is a list, as in 4,7,10."""
        return [int(each) for each in str(self[name]).split(",")]

    def words(self, name: str) -> list[str]:
        return str(self[name]).split(",")


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    about: str
    minutes: float
    """About how long it takes on two cores."""
    settings: Mapping[str, Setting]
    perform: Callable[[Settings, Stage], Sequence[Case]]

    def chosen(self, quick: bool, given: Mapping[str, str]) -> Settings:
        """Raises BadInput."""
        unknown = given.keys() - self.settings.keys()
        if unknown:
            what = f"The scenario {self.name} has no setting {', '.join(sorted(unknown))}."
            raise BadInput("UNKNOWN_SETTING", what, f"It has: {', '.join(self.settings)}.")
        found = {name: each.quick if quick else each.usual for name, each in self.settings.items()}
        return Settings(found | {name: _read(name, text, found[name]) for name, text in given.items()})


def _read(name: str, text: str, like: Value) -> Value:
    if isinstance(like, bool):
        if text not in ("true", "false"):
            raise BadInput("BAD_SETTING", f"{name} is true or false, not {text!r}.", "")
        return text == "true"
    try:
        return type(like)(text)
    except ValueError:
        raise BadInput("BAD_SETTING", f"{name} is a number like {like}, not {text!r}.", "") from None
