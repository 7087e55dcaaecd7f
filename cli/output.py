"""How commands answer: for eyes on a terminal, in plain lines into a pipe, in one JSON envelope if asked to."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fl.client.errors import QuorateError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA_VERSION = 1
SHORT = 8
"""Digits of an id that are shown where there is no room for all."""

F = TypeVar("F", bound=Callable[..., Any])


class Exit(IntEnum):
    """Documented in docs/cli.md: a number never changes its meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    TIMEOUT = 5
    UNVERIFIED = 6
    FORBIDDEN = 7
    INTERRUPTED = 130


@dataclass(slots=True)
class Manner:
    """How this run of the command answers: the object of its root context."""

    json: bool = False
    traceback: bool = False


def _trace(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.ensure_object(Manner).traceback |= wanted


def running_code(command: F) -> F:
    """Marks a command that runs other people's code: it takes `--traceback`."""
    return click.option(
        "--traceback",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_trace,
        help="If an app fails, show all that led there.",
    )(command)


def _note(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.ensure_object(Manner).json |= wanted


def reading(command: F) -> F:
    """Marks a command that tells something: it takes `--json`."""
    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note,
        help="Answer in one JSON envelope.",
    )(command)


def json_wanted() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.ensure_object(Manner).json


def on_terminal() -> bool:
    return sys.stdout.isatty() and not json_wanted()


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def envelope(data: object, status: str = "ok") -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "status": status, "data": data}, ensure_ascii=False)


def tell(data: object, show: Callable[[], None]) -> None:
    """The one answer of a reading command: `data` as JSON if that was asked for, else what `show` prints."""
    if json_wanted():
        click.echo(envelope(data))
    else:
        show()


def tell_text(text: str) -> None:
    """An answer that is a file's content."""
    tell({"text": text}, lambda: click.echo(text, nl=False))


def line(text: str = "") -> None:
    """A line of the answer. Never in the way of JSON."""
    if not json_wanted():
        click.echo(text)


def remark(text: str) -> None:
    """Something beside the answer, kept out of pipes."""
    click.echo(text, err=True)


def short(identity: str) -> str:
    """Of a CID or an id, for eyes: its first digits, and its last where all of a kind begin alike."""
    if len(identity) < 2 * SHORT:
        return identity
    return f"{identity[:SHORT]}…" if not identity.startswith("baf") else f"{identity[:4]}…{identity[-SHORT:]}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return _printable(", ".join(map(str, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else _printable(str(value))


def _printable(text: str) -> str:
    """What a stranger wrote is not to look like lines of ours."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str = "",
    *,
    only_telling: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """On a terminal with borders, and if it is told so without columns that say nothing; in a pipe one line a row,
    columns apart by tabs. `spare` columns are left out of a terminal that is too narrow, the first of them first."""
    texts = [[_text(cell) for cell in row] for row in rows]
    if not on_terminal():
        click.echo("\t".join(columns))
        for row in texts:
            click.echo("\t".join(row))
        return
    shown = telling(columns, texts) if only_telling else (columns, texts)
    console().print(rich_table(*shown, title, spare=spare))


def rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, spare: Sequence[str] = ()
) -> RenderableType:
    """As it fits: ids in full where there is room, else their first digits; then without what can be spared."""
    width = console().width
    kept = list(range(len(columns)))
    if _width(columns, rows) > width:
        rows = [[_shortened(cell) for cell in row] for row in rows]
    for name in spare:
        if _width(*_only(kept, columns, rows)) <= width:
            break
        kept = [place for place in kept if columns[place] != name]
    return _drawn(*_only(kept, columns, rows), title)


def _only(
    kept: Sequence[int], columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, collapse_padding=True)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """That a table takes if nothing of it is folded."""
    from rich.cells import cell_len

    widest = [max(cell_len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    return sum(widest) + _BETWEEN * len(widest)


_BETWEEN = 2
"""Characters between two columns, and in all at both edges."""
_ID = re.compile(r"baf[a-z2-7]{50,}|[0-9a-f]{32,}")


def _shortened(cell: str) -> str:
    return _ID.sub(lambda found: short(found[0]), cell)


def telling(
    columns: Sequence[str], rows: Sequence[Sequence[str]], usual: str = ""
) -> tuple[list[str], list[list[str]]]:
    """Without the columns that say nothing, or the usual in every row: a terminal is narrow."""
    kept = [place for place in range(len(columns)) if any(row[place] not in ("", usual) for row in rows)]
    return _only(kept, columns, rows)


def fields(values: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    texts = {_printable(name): _text(value) for name, value in values.items()}
    if not on_terminal():
        for name, text in texts.items():
            click.echo(f"{name}\t{text}")
        return
    width = max(map(len, texts), default=0)
    for name, text in texts.items():
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {text}")


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Shows that something takes its time, and how far it is; in a pipe only what is new, on standard error."""
    if sys.stderr.isatty():
        with console(stderr=True).status(what) as status:
            yield lambda text: status.update(f"{what}: {text}")
        return
    said = {""}

    def say(text: str) -> None:
        if text not in said and not json_wanted():
            said.add(text)
            remark(f"{what}: {text}")

    yield say


def failed(error: QuorateError, manner: Manner) -> int:
    """What went wrong in one line, and in one more what to do about it."""
    if manner.traceback and error.__cause__ is not None:
        traceback.print_exception(error)
    if manner.json:
        data = {"code": error.code, "message": error.what, "advice": error.todo, "exit_code": error.exit_code}
        click.echo(envelope(data, "error"))
    else:
        click.echo(click.style("Error: ", fg="red", bold=True) + f"{error.what} [{error.code}]", err=True)
        if error.todo:
            click.echo(error.todo, err=True)
    return error.exit_code
