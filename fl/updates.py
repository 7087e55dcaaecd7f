"""What a job's rules imply for the payloads of its updates."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from fl.records import JobRules
from fl.tensors.coding import Coding
from fl.tensors.encodings import UpdateForm, update_form
from fl.tensors.layout import AVERAGED, FROZEN, Schema


def groups_of(rules: JobRules) -> int:
    """Into how many groups the averaged tensors fall; one, if the job names none."""
    return max(1, len(rules.groups))


@lru_cache(maxsize=64)
def schema_of(rules: JobRules, group: int) -> Schema:
    """As an update of this group sees it: the averaged tensors of the other groups are frozen."""
    if not rules.groups:
        return rules.schema
    own = set(rules.groups[group].tensors)
    return Schema(
        tuple(
            replace(each, role=FROZEN) if each.role == AVERAGED and each.name not in own else each
            for each in rules.schema.tensors
        )
    )


@lru_cache(maxsize=64)
def form_of(rules: JobRules, group: int) -> UpdateForm:
    return update_form(schema_of(rules, group), Coding(rules.encoding, rules.range_bits, rules.share_ppm))
