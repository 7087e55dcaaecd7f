"""Every command takes --json, and then says all that it has to say in one envelope."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from cli.main import quorate as root
from cli.output import Exit
from tests.cli.run import quorate

NONE_OF_IT = {"demo": ["--trainers", "0"]}
"""What would take its time, asked for what cannot be."""


def commands(command: click.Command, *path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(" ".join(path), command)]
    context = click.Context(command)
    found: list[tuple[str, click.Command]] = []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        found += commands(below, *path, name)
    return found


ALL = dict(commands(root))


def something(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Choice):
        return str(parameter.type.choices[0])
    return "1" if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType) else "nothing"


def asked(name: str) -> list[str]:
    """Whatever the command cannot do without."""
    words = name.split()
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Argument):
            words.append(something(parameter))
        elif parameter.required:
            words += [parameter.opts[0], something(parameter)]
    return words + NONE_OF_IT.get(name, [])


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QUORATE_NETWORK", "QUORATE_KEY", "QUORATE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QUORATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUORATE_PASSPHRASE_FROM", f"file:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("name", ALL)
def test_every_command_answers_in_one_envelope(name: str) -> None:
    ran = quorate(*asked(name), "--json")
    assert len(ran.out.splitlines()) == 1, ran
    envelope = json.loads(ran.out)
    assert envelope.keys() == {"schema_version", "status", "data"}
    assert envelope["status"] == ("ok" if ran.code == 0 else "error")
    if ran.code:
        assert envelope["data"].keys() >= {"code", "message", "advice", "exit_code"}
        assert envelope["data"]["exit_code"] == ran.code and ran.code in list(Exit)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_in_the_arguments_is_an_envelope_too(name: str) -> None:
    ran = quorate(*name.split(), "--nonsense", "--json")
    assert (ran.code, ran.data["code"], ran.err) == (2, "USAGE", "")
