"""The rules of aggregation, one file a rule: how the updates of a round become what its model moves by.

Enters: what a job fixes, tiles of decoded updates. Leaves: integer sums and a denominator, from which
`fl.aggregation` makes the next model. The state machine reads here what a rule goes with; the data process computes
with it. Nothing is compiled before it is first used.
"""

from __future__ import annotations

from fl.errors import Refused
from fl.records import JobRules
from fl.rules.adaptive import FedAdagrad, FedAdam, FedYogi
from fl.rules.bulyan import Bulyan
from fl.rules.clipped_mean import ClippedMean
from fl.rules.fedavg import FedAvg
from fl.rules.fedavgm import FedAvgM
from fl.rules.krum import Krum, MultiKrum
from fl.rules.median import Median
from fl.rules.rule import Rule, settings_of
from fl.rules.trimmed_mean import TrimmedMean

RULES: dict[str, Rule] = {
    each.name: each
    for each in (
        FedAvg(),
        FedAvgM(),
        FedAdagrad(),
        FedAdam(),
        FedYogi(),
        ClippedMean(),
        Median(),
        TrimmedMean(),
        Krum(),
        MultiKrum(),
        Bulyan(),
    )
}


def rule_of(name: str) -> Rule:
    if name not in RULES:
        raise Refused("NOT_SUPPORTED", f"The rule {name!r} is not offered; there is: {', '.join(RULES)}.")
    return RULES[name]


def check_rule(rules: JobRules) -> None:
    """Raises Refused unless the job's rule goes with all else that the job fixes. A cap of 1 says that weights are
    equal, and discounts that the job has no rounds."""
    rule = rule_of(rules.rule)
    settings = settings_of(rule, rules.settings)
    if rules.encoding not in rule.encodings:
        listed = ", ".join(sorted(rule.encodings))
        raise Refused("BAD_RULES", f"The rule {rule.name} goes with the encodings {listed}.")
    for failed, sentence in (
        (rules.cap != 1 and not rule.weighted, "takes every update alike: weights must be equal, with the cap 1"),
        (bool(rules.groups) and not rule.groups, "looks at whole updates: the job can have no groups of tensors"),
        (bool(rules.discounts) and not rule.stale, "compares updates of one model: the job must have rounds"),
        (rules.maximum > rule.most, f"takes at most {rule.most} updates a round"),
        (rules.minimum < (fewest := rule.fewest(settings)), f"needs a minimum of at least {fewest} with its settings"),
    ):
        if failed:
            raise Refused("BAD_RULES", f"The rule {rule.name} {sentence}.")
    if complaint := rule.complaint(settings, rules):
        raise Refused("BAD_RULES", complaint)
