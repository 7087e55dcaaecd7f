"""Each promise of docs/threat-model.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def is_there(name: str) -> bool:
    path, _, test = name.partition("::")
    file = ROOT / path
    return file.is_file() and (not test or re.search(rf"def {test}\(", file.read_text()) is not None)


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.:]+)`", PAGE)
    assert len(named) > 30
    assert [name for name in named if not is_there(name)] == []
