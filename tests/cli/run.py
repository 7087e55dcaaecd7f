"""Runs the command in this process, as a shell would: arguments in; exit code, output and errors out."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

from cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Of the one envelope that `--json` prints."""
        envelope = json.loads(self.out)
        assert envelope["schema_version"] == 1
        assert (envelope["status"] == "ok") == (self.code == 0), self
        return envelope["data"]


def quorate(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Ran:
    ran = quorate(*arguments)
    assert ran.code == 0, ran
    return ran
