"""The sync face in a notebook, where an event loop is running all the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fl.client.keyfile import save_key
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import Running, running

nbclient = pytest.importorskip("nbclient", reason="notebooks need: pip install -r requirements-extras.txt")
nbformat = pytest.importorskip("nbformat", reason="notebooks need: pip install -r requirements-extras.txt")
pytest.importorskip("ipykernel", reason="notebooks need: pip install -r requirements-extras.txt")

CONNECT = """
import asyncio, quorate
assert asyncio.get_running_loop().is_running()
job = quorate.connect({network!r}, key={key!r}, home={home!r}).job("digits")
job.join()
"""
TRAIN = """
for task in job.tasks():
    delta = {name: array * 0 + 1 for name, array in task.model.items()}
    receipt = task.submit(delta=delta, examples=3, metrics={"loss": 0.5})
    print(task.round, receipt.status)
"""
INTERLEAVED = """
beats = 0
async def heart():
    global beats
    while True:
        beats += 1
        await asyncio.sleep(0)
beating = asyncio.create_task(heart())
async with await quorate.connect_async(NETWORK, home=HOME) as network:
    status = await (await network.job("digits")).status()
beating.cancel()
print(status.round, beats > 0)
"""
MODEL = """
print({name: float(array.mean()) for name, array in job.model().items()})
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


@pytest.mark.slow
def test_the_loop_of_tasks_runs_in_a_notebook(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1))
    save_key(tmp_path / "alice.key", signing_key("trainer-000"), None)
    places = {
        "network": str(chain.network_file()),
        "key": str(tmp_path / "alice.key"),
        "home": str(tmp_path / "home"),
    }
    constants = f"NETWORK, HOME = {places['network']!r}, {places['home']!r}\n"
    cells = [CONNECT.format(**places), TRAIN, constants + INTERLEAVED, MODEL]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": "."}}
    ).execute()
    printed = ["".join(each.get("text", "") for each in cell.outputs) for cell in notebook.cells]
    assert printed[1].splitlines() == ["1 ok", "2 ok", "3 ok"]
    assert printed[2].strip() == "3 True"
    assert printed[3].count("3.0") == 2
