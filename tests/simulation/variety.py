"""Jobs of every sort, drawn by a seed: rules with and without memory, groups, buffers, lots, check-ins, evaluators."""

from __future__ import annotations

import random
from typing import Any

from fl.jobrules import ASYNCHRONOUS
from fl.records import CohortRules, EvaluationRules, Goal, TensorGroup
from fl.rules import rule_of
from fl.rules.rule import written_settings

SETTINGS: dict[str, dict[str, int | float]] = {
    "fedavg": {},
    "fedavgm": {"learning_rate": 0.5},
    "fedadagrad": {"tau": 0.01},
    "fedadam": {"learning_rate": 0.1},
    "fedyogi": {"learning_rate": 0.1},
    "clipped_mean": {"norm": 0.2},
    "median": {},
    "trimmed_mean": {"share": 34},
    "krum": {"faulty": 0},
    "multi_krum": {"faulty": 0, "chosen": 2},
    "bulyan": {"faulty": 0},
}
_GROUPS = (TensorGroup("head", ("bias",)), TensorGroup("trunk", ("weight",)))
_EVALUATION = {"every": 1, "minimum": 1, "deadline_ms": 3_000, "metrics": ("accuracy",)}
PLAIN_SHARE = 0.5


def drawn_rules(chance: random.Random, trainers: int) -> dict[str, Any]:
    """Changes to the rules of a plain job; none for about half the seeds."""
    if chance.random() < PLAIN_SHARE:
        return {}
    name = chance.choice(sorted(SETTINGS))
    rule = rule_of(name)
    settings = written_settings(rule, SETTINGS[name])
    changes: dict[str, Any] = {"rule": name, "settings": settings}
    fewest = rule.fewest({**{each.name: each.default for each in rule.settings}, **SETTINGS[name]})
    if fewest > trainers:
        return {}
    changes["minimum"] = max(min(2, trainers), fewest)
    if not rule.weighted:
        changes |= {"weights": "equal", "cap": 1}
    encoding = chance.choice(sorted(rule.encodings - {"ring32"}))
    changes["encoding"] = encoding
    if encoding == "topk":
        changes["share_ppm"] = 400_000
    if rule.groups and chance.random() < 0.4:
        changes["groups"] = _GROUPS
    if rule.stale and not changes.get("groups") and chance.random() < 0.3:
        changes |= {"mode": ASYNCHRONOUS, "discounts": (1024, 724, 591)}
    else:
        changes |= _cohort(chance, trainers, changes["minimum"])
    if chance.random() < 0.4:
        before_next = chance.random() < 0.5
        changes["evaluation"] = EvaluationRules(**_EVALUATION, before_next=before_next, cohort=chance.choice((0, 1)))
        changes["goal"] = Goal("accuracy", larger=True)
    return changes


def _cohort(chance: random.Random, trainers: int, minimum: int) -> dict[str, Any]:
    sort = chance.choice(("all", "all", "lots", "check-in", "both"))
    size = chance.randint(minimum, trainers) if sort in ("lots", "both") else 0
    check_in_ms = 1_000 if sort in ("check-in", "both") else 0
    target = {"target": size} if size else {}
    return {"cohort": CohortRules(size, chance.choice((0, 500_000)) if size else 0, check_in_ms), **target}
