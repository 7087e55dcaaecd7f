from __future__ import annotations

import random

import pytest

from chain.genesis import Params
from fl.jobrules import check_rules
from fl.rules import RULES
from tests.fl.builders import make_rules
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate
from tests.simulation.variety import SETTINGS, drawn_rules

PLAIN = {"weights": "examples", "cap": 100, "minimum": 2}


def test_what_is_drawn_is_a_job_that_the_chain_takes_and_of_every_sort() -> None:
    sorts: set[str] = set()
    for seed in range(600):
        changes = {"target": (trainers := 2 + seed % 3), **PLAIN, **drawn_rules(random.Random(seed), trainers)}
        rules = make_rules(**changes)
        check_rules(rules, Params())
        sorts |= {rules.rule, rules.encoding, rules.mode}
        sorts |= {name for name in ("groups", "evaluation", "cohort") if name in changes}
    assert sorts >= {*RULES, "f32", "f16", "bf16", "q8", "topk", "async", "groups", "evaluation", "cohort"}
    assert SETTINGS.keys() == RULES.keys()


@pytest.mark.parametrize("seed", [3, 5, 8])
def test_a_drawn_job_runs_to_its_end_with_the_models_of_its_rule(seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=seed)
        await cluster.start()
        chance = random.Random(seed)
        while not (changes := drawn_rules(chance, 4)):
            pass
        training = Training(cluster, trainers=4, blobs=5, **changes)
        await training.create()
        assert await cluster.until(training.finished, within=120)
        node = cluster.node(0)
        for number in range(1, training.job(node).round + 1):
            current = training.round(node, number)
            assert current is not None
            if current.model:
                assert current.model == training.expected_model(node, number)

    simulate(main)
