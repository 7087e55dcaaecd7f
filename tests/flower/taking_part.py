"""Runs in an environment with Flower: creates jobs for its apps, or answers them, several in one process.

python -m tests.flower.taking_part create NETWORK KEY HOME lists digits modded
python -m tests.flower.taking_part train NETWORK KEY HOME I/K lists digits modded
python -m tests.flower.taking_part evaluate NETWORK KEY HOME I/K digits
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quorate
import quorate.flower
from fl.client.apps import load_app

ROOT = Path(__file__).resolve().parent.parent.parent
APPS = {
    "lists": ("lists_app.client_app:app", ROOT / "tests" / "flower" / "apps" / "lists", ["batches"]),
    "modded": ("modded_app:app", ROOT / "tests" / "flower" / "apps" / "modded", ["calls"]),
    "digits": ("digits_app.client_app:app", ROOT / "examples" / "flower", ["train_loss"]),
}
TRAINERS, ROUNDS = 3, 3


def create(network: quorate.Network, name: str) -> None:
    reference, place, metrics = APPS[name]
    arrays, roles, config, _ = quorate.flower.draft(reference)
    evaluation: dict[str, Any] = (
        {"every": 1, "metrics": ["eval_acc"], "deadline_s": 120.0, "before_next": True} if name == "digits" else {}
    )
    named = load_app(f"flower:{reference}", place)
    network.create_job(
        name,
        arrays,
        rounds=ROUNDS,
        target=TRAINERS,
        privacy="visible-to-validators",
        metrics=metrics,
        config=config,
        evaluation=evaluation,
        app=named.name,
        app_digest=named.digest,
        **roles,
    )


def train(network: quorate.Network, name: str, node_config: str) -> None:
    job = network.job(name)
    job.join()
    quorate.flower.train(job, APPS[name][0], node_config=node_config)


def evaluate(network: quorate.Network, name: str, node_config: str) -> None:
    job = network.job(name)
    job.join(role="evaluator")
    quorate.flower.evaluate(job, APPS[name][0], node_config=node_config)


def main(act: str, network_file: str, key: str, home: str, *rest: str) -> None:
    sys.path[:0] = [str(place) for _, place, _ in APPS.values()]
    with quorate.connect(network_file, key, home=home) as network:
        if act == "create":
            for name in rest:
                create(network, name)
            return
        number, _, count = rest[0].partition("/")
        node_config = f"partition-id={int(number) - 1} num-partitions={count}"
        answer = {"train": train, "evaluate": evaluate}[act]
        _side_by_side([lambda name=name: answer(network, name, node_config) for name in rest[1:]])


def _side_by_side(acts: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


if __name__ == "__main__":
    main(*sys.argv[1:])
