"""docs/cli.md lists every command with every option, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from cli.main import quorate

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
COMMON = {"--network", "--key", "--passphrase", "--home", "--patience"}
OPTION = re.compile(r"--[a-z][a-z-]+")


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, set[str]]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *path, name)
        return
    options = {each for parameter in command.params for each in parameter.opts if each.startswith("--")}
    yield " ".join(path), options - {"--json", "--help"}


def listed() -> dict[str, set[str]]:
    """Of the page's section on options; a line without a name goes on with the one above it."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in PAGE.partition("Beside these, and `--json`:")[2].partition("## Exit codes")[0].splitlines():
        name = line.partition("--")[0].strip() or name
        found.setdefault(name, set()).update(OPTION.findall(line))
    found.pop("", None)
    return found


def test_every_option_of_every_command_is_listed() -> None:
    beside = {name: (options - COMMON if options >= COMMON else options) for name, options in commands(quorate)}
    assert listed() == {name: options for name, options in beside.items() if options}


def test_every_command_is_listed() -> None:
    first = PAGE.partition("## Answers")[0]
    groups = re.findall(r"^    (\w+) +(.*(?:\n {16}.*)*)", first, re.MULTILINE)
    tree = {name: set(re.findall(r"[a-z-]+", rest)) for name, rest in groups}
    for name, _ in commands(quorate):
        group, *below = name.split()
        assert group in tree and set(below) <= tree[group], name
