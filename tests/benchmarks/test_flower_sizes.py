"""What is made of the moments that Flower's programs and the chain tell."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.flower_sizes import FlowerRound, _told, impatience, of_closings, of_flower, with_ratios
from benchmarks.network import Stage
from benchmarks.scenarios import flower, scenarios
from fl.client.errors import BadInput

ROUNDS = [FlowerRound(0.0, 9.0, 9.5, 9.6), FlowerRound(10.0, 14.0, 15.0, 15.5), FlowerRound(16.0, 18.0, 21.0, 21.25)]


def test_a_round_lasts_from_the_end_of_the_one_before() -> None:
    assert of_closings([3.0, 4.5, 5.0])["rounds_s"] == [1.5, 0.5]
    assert of_flower(ROUNDS)["rounds_s"] == [5.9, 5.75]


def test_the_first_round_has_no_part_in_the_stretches() -> None:
    assert of_flower(ROUNDS)["stretches"] == {"until_asked_s": 3.0, "until_answered_s": 2.0, "averaging_s": 0.375}


def test_ratios_are_to_the_superlink_and_what_impatience_saves_is_polling() -> None:
    ways: dict[str, Any] = {"superlink": {"median_s": 8.0}, "impatient": {"median_s": 2.0}, "q8": {"median_s": 0.4}}
    with_ratios(ways)
    assert ways["q8"]["of_superlink"] == 0.05 and ways["superlink"]["polling_share"] == 0.75
    alone: dict[str, Any] = {"q8": {"median_s": 0.4}}
    with_ratios(alone)
    assert "of_superlink" not in alone["q8"]


def run_of(text: str) -> Any:
    return SimpleNamespace(stdout=io.StringIO(text))


def test_rounds_are_read_from_what_the_server_app_prints() -> None:
    text = "INFO : aggregate_train\nflat round 1 1.0 2.0 3.0 4.0\nmore\n  flat round 2 5.0 6.0 7.0 8.0\n"
    assert list(_told(run_of(text), 2)) == [FlowerRound(1.0, 2.0, 3.0, 4.0), FlowerRound(5.0, 6.0, 7.0, 8.0)]


def test_a_run_that_ends_early_says_with_what() -> None:
    with pytest.raises(SystemExit, match=r"after 1 rounds: ERROR: no such app"):
        list(_told(run_of("flat round 1 1.0 2.0 3.0 4.0\nERROR: no such app\n"), 2))


def test_impatience_cuts_the_sleeps_of_any_program(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = "import time; asked = []; import sitecustomize; sitecustomize._sleep = asked.append\n"
    program += "time.sleep(3); time.sleep(0.1); print(asked)"
    environment = impatience(tmp_path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.25, 0.1]"


def test_the_scenario_has_figures_of_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(parameters: int, clients: int, rounds: int, ways: list[str]) -> dict[str, Any]:
        found = {"superlink": of_flower(ROUNDS), "q8": of_closings([0.0, 0.5, 1.25])}
        with_ratios(found)
        return {"ways": found}

    monkeypatch.setattr(flower, "measure", measured)
    monkeypatch.setattr(flower, "compile_kernels", lambda: None)
    monkeypatch.setattr(flower, "FLOWER", Path())
    scenario = scenarios()["flower"]
    [case] = scenario.perform(scenario.chosen(True, {}), Stage(Path()))
    assert case.figures["q8, a round"].values == (0.5, 0.75)
    assert case.figures["superlink, until asked"].median == 3.0
    assert case.figures["q8, of the SuperLink's round"].median == pytest.approx(0.625 / 5.825, abs=0.001)


def test_a_way_that_is_not_known_is_told() -> None:
    scenario = scenarios()["flower"]
    with pytest.raises(BadInput, match="no way fast"):
        scenario.perform(scenario.chosen(True, {"ways": "fast"}), Stage(Path()))
