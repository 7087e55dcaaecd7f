from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.campaign import Outcome, Task, main, outcomes, replay_command
from tests.simulation.scenario import Feature, Vice, draw

ROOT = Path(__file__).parents[2]
SEEDS = 60
RARE = (118,)
"""What none of the first comes to."""
HANG_SECONDS = 600


@pytest.fixture(scope="module")
def played() -> list[Outcome]:
    tasks = [Task(seed, None) for seed in (*range(1, SEEDS + 1), *RARE)]
    return list(outcomes(tasks, os.cpu_count() or 1))


def test_no_seed_breaks_a_promise(played: list[Outcome]) -> None:
    failed = {replay_command(Task(each.seed, None)): each.violations for each in played if not each.passed}
    assert not failed
    assert len(played) == SEEDS + len(RARE)


def test_the_campaign_is_not_vacuous(played: list[Outcome]) -> None:
    """Every fault and every vice happens, and the chain does something in spite of them."""
    totals: Counter[str] = Counter()
    for outcome in played:
        totals.update(outcome.stats)
    missing = [f"fault: {feature.value}" for feature in Feature if not totals[f"fault: {feature.value}"]]
    missing += [f"Byzantine: {vice.value}" for vice in Vice if not totals[f"Byzantine: {vice.value}"]]
    assert not missing
    for what in ("blocks", "acknowledged", "rounds closed", "receipts ok", "machines lost for good", "rows that rot"):
        assert totals[what] or totals[f"fault: {what}"], what
    assert {draw(outcome.seed).n for outcome in played} == {4, 7, 10}


def test_at_most_f_validators_of_a_scenario_are_faulty() -> None:
    for seed in range(1, 500):
        scenario = draw(seed)
        faulty = [*scenario.liars, *scenario.doomed, *([] if scenario.rotten is None else [scenario.rotten])]
        assert len(set(faulty)) == len(faulty) <= scenario.f
        assert scenario.seconds <= 60


def _hash_under(hash_seed: str, seed: int) -> str:
    command = [sys.executable, "-m", "tests.simulation.campaign", "--seeds", "1", "--first-seed", str(seed)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    found = re.search(r"^event hash ([0-9a-f]{32})$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return found.group(1)


def test_a_seed_is_one_history_whatever_the_hash_seed() -> None:
    liars = next(seed for seed in range(1, 100) if draw(seed).liars and Feature.CRASHES in draw(seed).features)
    assert _hash_under("1", liars) == _hash_under("2", liars)


def test_seeds_differ(played: list[Outcome]) -> None:
    assert len({outcome.event_hash for outcome in played}) == len(played)


def test_the_command_says_what_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--first-seed", "1", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


def test_the_command_says_what_failed_and_how_to_replay_it(capsys: pytest.CaptureFixture[str]) -> None:
    broken = ["--guard", "quorum minus one"]
    assert main(["--seeds", "1", "--first-seed", "1", "--jobs", "1", *broken]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "0 passed, 1 failed"
    assert "python -m tests.simulation.campaign --seeds 1 --first-seed 1 --guard 'quorum minus one'" in said
