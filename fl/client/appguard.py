"""Blames training code for what it raises: one line with its file and line, instead of everything that called it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from fl.client.errors import QuorateError

_MOST_CHARACTERS = 300


class AppFailed(QuorateError):
    """The code of an app has raised; `__cause__` is what."""


class Guarded:
    """An app whose methods raise AppFailed for whatever it raises."""

    def __init__(self, name: str, app: Any, home: Path) -> None:
        self._name = name
        self._app = app
        self._home = home

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._app, attribute)
        if not callable(found):
            return found

        @wraps(found)
        def called(*arguments: Any, **settings: Any) -> Any:
            with blamed(self._name, self._home):
                return found(*arguments, **settings)

        return called


@contextmanager
def blamed(name: str, home: Path) -> Iterator[None]:
    """`home` is the directory of the app's own code: its last line that was reached is the one to look at."""
    try:
        yield
    except QuorateError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:_MOST_CHARACTERS]
        what = f"{type(error).__name__}: {told}" if told else type(error).__name__
        raise AppFailed("APP_FAILED", f"The app {name} failed{_where(error, home)}: {what}", _TODO) from error


_TODO = "Mend it and start again; --traceback shows all that led there."


def _where(error: Exception, home: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if _is_within(each.filename, home)] or frames
    return f" at {own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}" if own else ""


def _is_within(file: str, home: Path) -> bool:
    path = Path(file)
    return path.is_absolute() and path.is_relative_to(home) and "site-packages" not in path.parts
