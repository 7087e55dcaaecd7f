"""What rounds of every rule give, for comparing one process with another: a script that prints digests.

python -m tests.fl.numbers.digests
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from fl.aggregation import AggregationRules, Update
from fl.kernels.golden import check_golden
from fl.tensors.model import build_model
from tests.fl.numbers.averaging import averaged, rules_of, updates_of
from tests.fl.numbers.builders import WIDE, random_model
from tests.fl.numbers.jobs import COUNT, GROUPS, combinations, drawn, job_of


def rounds() -> Iterator[tuple[str, AggregationRules, list[Update]]]:
    for rule, encoding, grouped in combinations():
        rules = job_of(rule, encoding, groups=GROUPS if grouped else ())
        yield f"{rule} {encoding} {grouped}", rules, drawn(rules, COUNT, 5)
    for encoding in ("f32", "q8"):
        rules = rules_of(WIDE, encoding)
        yield f"wide {encoding}", rules, updates_of(rules, 6)


def digests() -> list[str]:
    lines = []
    for name, rules, updates in rounds():
        base = build_model(rules.rules.schema, random_model(rules.rules.schema, 1))
        made = averaged(rules, updates, base, at_once=5)
        assert made.outcome.ok
        found = (hashlib.sha256(blob).hexdigest() for blob in (made.model, made.moments, made.outcome.record))
        lines.append(f"{name} {' '.join(found)}")
    return lines


if __name__ == "__main__":
    check_golden()
    print("\n".join(digests()))
