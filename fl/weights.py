"""What an update weighs: by its job's basis, its member's cap and, in a job without rounds, the age of its base."""

from __future__ import annotations

from fl.records import JobRules

EQUAL = "equal"
EXAMPLES = "examples"
DATASET = "dataset"
BASES = (EQUAL, EXAMPLES, DATASET)

WHOLE = 2**10
"""The discount of an update whose base is the newest model: in full."""


def weight_of(rules: JobRules, examples: int, declared: int, colleagues: int, age: int) -> int:
    """`declared` is what the member's data set says to hold, `colleagues` how many members of its organisation are in
    the cohort, itself among them, and `age` how many buffers ago its base was the newest model. 0: it may not count."""
    basis, weight = rules.weights, rules.cap
    if basis != EQUAL:
        weight = min(examples if basis == EXAMPLES else declared, weight)
    if rules.organisation_cap:
        weight = min(weight, rules.organisation_cap // colleagues)
    if weight and rules.discounts:
        weight = max(1, weight * rules.discounts[age] // WHOLE)
    return weight
