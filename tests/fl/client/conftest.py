from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fl.client.chainlet import Running, running


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started
