"""What aggregation rules do against trainers who poison the model.

    python examples/poisoning/run.py --out poisoning

Twenty trainers hold handwritten digits, six of them attack (four against bulyan, which asks for n >= 4f + 3). Each
attack meets each rule, on parts drawn alike (IID) and uneven ones (Dirichlet 0.5), in Quorate's own simulation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from attacks import ATTACKS, Poisoned

from fl.client.jobfile import job_of
from fl.simulation.simulate import simulate

TRAINERS, ATTACKERS = 20, 6
CLEAN = "none"
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"share": 30},
    "multi_krum": {"faulty": ATTACKERS, "chosen": TRAINERS - ATTACKERS},
    "bulyan": {"faulty": 4},
    "clipped_mean": {"norm": 1.0},
}
PARTITIONS: dict[str, float | None] = {"IID": None, "Dirichlet 0.5": 0.5}


def accuracy(rule: str, attack: str, alpha: float | None, rounds: int, seed: int = 1) -> float:
    """Of the last model, on data that no trainer has. Where honest trainers have no finite answer to a model any more,
    the job is paused and ends there."""
    attackers = 0 if attack == CLEAN else min(ATTACKERS, RULES[rule].get("faulty", ATTACKERS))
    job = job_of(
        {
            "name": "poisoning",
            "app": "digits",
            "rule": {"name": rule, **RULES[rule]},
            "rounds": rounds,
            "privacy": "visible-to-validators",
            "weights": "equal",
            "metrics": ["loss"],
            "model": {"hidden": 32},
            "config": {"lr": 0.1, "epochs": 5, "batch": 16, "momentum": 0.5},
            "simulation": {"seed": seed},
        },
        Path(__file__).parent,
    )
    played = simulate(job, TRAINERS, app=Poisoned(attack, attackers, alpha))
    return played.rounds[-1].held_out["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Poisoning attacks against aggregation rules.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table and the plot")
    given = parser.parse_args()
    # A model that was poisoned well overflows when honest trainers go on from it.
    np.seterr(over="ignore", invalid="ignore")
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"| data | attack | {' | '.join(RULES)} |")
    print(f"| --- | --- |{' ---: |' * len(RULES)}")
    found: dict[str, dict[str, list[float]]] = {}
    for partition, alpha in PARTITIONS.items():
        for attack in (CLEAN, *ATTACKS):
            row = [accuracy(rule, attack, alpha, given.rounds) for rule in RULES]
            found.setdefault(partition, {})[attack] = row
            print(f"| {partition} | {attack} | {' | '.join(f'{value:.1%}' for value in row)} |", flush=True)
    (given.out / "poisoning.json").write_text(json.dumps({"rules": list(RULES), "accuracy": found}, indent=1) + "\n")
    draw(found, given.rounds, given.out / "poisoning.png")


def draw(found: dict[str, dict[str, list[float]]], rounds: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for panel, (partition, rows) in zip(panels, found.items(), strict=True):
        shown = panel.imshow(list(rows.values()), cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(rows.values()):
            for x, value in enumerate(row):
                colour = "white" if value < 0.2 or value > 0.82 else "black"
                panel.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=10)
        panel.set_xticks(range(len(RULES)), [rule.replace("_", "\n") for rule in RULES], fontsize=9)
        panel.set_yticks(range(len(rows)), list(rows), fontsize=9)
        panel.set_title(f"data: {partition}", fontsize=10)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    figure.colorbar(shown, ax=panels, label="accuracy", format=lambda value, _: f"{value:.0%}", pad=0.01)
    figure.suptitle(
        f"Accuracy (%) after {rounds} rounds: {TRAINERS} trainers, {ATTACKERS} of them attack (4 against bulyan)",
        fontsize=11,
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
