"""A short form of examples/poisoning: fewer rounds, and only what its page says will hold."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PLACE = Path(__file__).parents[2] / "examples" / "poisoning"
ROUNDS = 10
ROBUST = ("median", "trimmed_mean", "multi_krum")
LOUD = ("scaling ×20", "amplified sign flip")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    sys.path.insert(0, str(PLACE))
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield importlib.import_module("run")
    finally:
        sys.path.remove(str(PLACE))
        for name in ("run", "attacks"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def clean(example: ModuleType) -> float:
    return float(example.accuracy("fedavg", example.CLEAN, None, ROUNDS))


def test_digits_are_learnt_while_nobody_attacks(clean: float) -> None:
    assert clean > 0.9


@pytest.mark.parametrize("attack", LOUD)
def test_a_loud_attack_ruins_the_mean(example: ModuleType, attack: str) -> None:
    assert example.accuracy("fedavg", attack, None, ROUNDS) < 0.3


@pytest.mark.parametrize("attack", LOUD)
@pytest.mark.parametrize("rule", ROBUST)
def test_a_loud_attack_costs_robust_rules_five_points_at_most(
    example: ModuleType, clean: float, rule: str, attack: str
) -> None:
    assert example.accuracy(rule, attack, None, ROUNDS) > clean - 0.05


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_every_attack_is_an_update_that_the_chain_accepts(example: ModuleType, alpha: float | None) -> None:
    for attack in example.ATTACKS:
        assert 0 <= example.accuracy("bulyan", attack, alpha, 1) <= 1


def test_the_same_seed_gives_the_same_accuracy(example: ModuleType) -> None:
    once, again = (example.accuracy("median", "little is enough", 0.5, 2) for _ in range(2))
    assert once == again


@pytest.mark.slow
def test_the_command_draws_its_table(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(PLACE / "run.py"), "--rounds", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PLACE.parents[1],
        env={"PYTHONPATH": str(PLACE.parents[1]), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert ran.stdout.count("\n") == 2 + 2 * 6
    assert (tmp_path / "poisoning.png").read_bytes().startswith(b"\x89PNG")
