"""A job's rules: what can be asked of the chain, within which limits, and how members name what they accept."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TypeAlias

from chain.cid import raw_cid
from chain.codec import encode
from chain.genesis import Params
from chain.hashing import Domain, digest
from chain.unixfs import MAX_FILE_BYTES, manifest_cid, zeros_manifest
from fl.blobs import Demand, model_demand
from fl.cohort import cohort_size, is_listed
from fl.errors import Refused
from fl.evaluationrules import evaluation_complaints
from fl.members import is_name
from fl.phases import SEALED, SECURE_AGGREGATION
from fl.records import (
    MAX_ROUNDS,
    MAX_SPAN_MS,
    ConfigEntry,
    ConfigType,
    JobRules,
)
from fl.rules import check_rule
from fl.tensors.encodings import ENCODINGS, Place
from fl.tensors.grid import MAX_UPDATES, Grid
from fl.tensors.layout import AVERAGED, Schema, check_schema, layout_of, model_tensors
from fl.tensors.model import check_model, model_form
from fl.tensors.ring32 import Ring32
from fl.tensors.topk import TopK
from fl.updates import form_of
from fl.weights import BASES, EQUAL, WHOLE

SYNCHRONOUS = "sync"
ASYNCHRONOUS = "async"
MODES = (SYNCHRONOUS, ASYNCHRONOUS)
FEDAVG = "fedavg"
VISIBLE_TO_VALIDATORS = "visible-to-validators"
PRIVACIES = (VISIBLE_TO_VALIDATORS, SEALED, SECURE_AGGREGATION)

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
_LONGEST = Place(bytes(32), 2**64 - 1, bytes(32))


def rules_hash(rules: JobRules) -> bytes:
    return digest(Domain.RULES, encode(rules))


def parameters_of(schema: Schema) -> int:
    """Of the averaged tensors."""
    return layout_of(schema).parameters


def kept_values(schema: Schema) -> int:
    """Of the averaged and the frozen tensors: every round writes them."""
    return sum(prod(each.shape) for each in model_tensors(schema))


def zero_model(schema: Schema) -> bytes:
    """The model blob of zeros, which needs no bytes in a transaction."""
    form = model_form(schema)
    return form.header + bytes(form.size_bytes - len(form.header))


@lru_cache(maxsize=64)
def zero_model_cid(schema: Schema) -> bytes:
    """Of a model of any size, for the price of hashing two leaves."""
    form = model_form(schema)
    return manifest_cid(zeros_manifest(form.header, form.size_bytes))


def grid_of(rules: JobRules) -> Grid:
    """The numbers of the job's sums; raises Refused("BAD_RULES") beyond what 64 bits can sum."""
    return Grid(rules.range_bits, rules.cap, rules.maximum)


def config_at(rules: JobRules, round: int) -> dict[str, ConfigEntry]:
    """What the clients of a round are given: of each name the newest entry."""
    return {entry.name: entry for entry in rules.config if entry.from_round <= round}


def check_rules(rules: JobRules, params: Params) -> None:
    """Raises Refused unless the chain can run a job under these rules."""
    if not is_name(rules.name):
        raise Refused("BAD_NAME")
    for what, given, offered in (
        ("mode", rules.mode, MODES),
        ("encoding", rules.encoding, tuple(ENCODINGS)),
        ("privacy", rules.privacy, PRIVACIES),
        ("basis of weights", rules.weights, BASES),
    ):
        if given not in offered:
            raise Refused("NOT_SUPPORTED", f"The {what} {given!r} is not offered; there is: {', '.join(offered)}.")
    _check_privacy(rules)
    for complaints in (_of_rounds, _of_weights, _of_cohort, _of_mode, _of_names, evaluation_complaints):
        for failed, sentence in complaints(rules):
            if failed:
                raise Refused("BAD_RULES", sentence)
    grid_of(rules)
    check_rule(rules)
    _check_config(rules)
    check_schema(rules.schema, params.job_parameters)
    _check_groups(rules)
    _check_sizes(rules)


def _check_privacy(rules: JobRules) -> None:
    if rules.privacy != VISIBLE_TO_VALIDATORS:
        raise Refused(
            "PRIVACY_NOT_OFFERED",
            f"Rounds that are {rules.privacy} are not offered yet; the privacy is {VISIBLE_TO_VALIDATORS!r}.",
        )
    if rules.encoding == Ring32.name:
        raise Refused("PRIVACY_NOT_OFFERED", f"The encoding {Ring32.name} is for masked updates, not offered yet.")


def check_initial_model(rules: JobRules, model: bytes, params: Params, creator: bytes) -> Demand | None:
    """Under rules that have been checked. A model that does not come inline is all zeros, or the blob demanded."""
    if not model:
        return None if rules.initial == zero_model_cid(rules.schema) else model_demand(rules, creator)
    if len(model) > params.inline_bytes:
        raise Refused("OVERSIZE", f"An inline model may take {params.inline_bytes} bytes, not {len(model)}.")
    check_model(rules.schema, model)
    if raw_cid(model) != rules.initial:
        raise Refused("BAD_CID", "The initial model does not hash to the CID that the rules name.")
    return None


def _check_sizes(rules: JobRules) -> None:
    # Before anything is made whose size grows with the model's.
    _check_fits("The model's tensors", sum(each.size_bytes for each in model_tensors(rules.schema)))
    _check_fits("The model", model_form(rules.schema).size_bytes)
    # One of a group takes no more than one of the whole model.
    _check_fits("An update", form_of(replace(rules, groups=()), 0).size_bytes(_LONGEST))


def _check_fits(what: str, size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise Refused("OVERSIZE", f"{what} would take {size_bytes} bytes; a blob has at most {MAX_FILE_BYTES}.")


def _check_groups(rules: JobRules) -> None:
    """Each averaged tensor is in one group."""
    names = [group.name for group in rules.groups]
    if not all(map(is_name, names)) or names != sorted(set(names)):
        raise Refused("BAD_GROUPS", "Groups have distinct names of letters, digits, dot, dash, underscore, and sorted.")
    for group in rules.groups:
        if list(group.tensors) != sorted(set(group.tensors)):
            raise Refused("BAD_GROUPS", f"The tensors of the group {group.name} must be sorted and distinct.")
    averaged = {each.name for each in rules.schema.tensors if each.role == AVERAGED}
    grouped = sorted(tensor for group in rules.groups for tensor in group.tensors)
    wrong = averaged.symmetric_difference(grouped) | {one for one, other in pairwise(grouped) if one == other}
    if grouped and wrong:
        raise Refused("BAD_GROUPS", f"Each averaged tensor is in exactly one group, no other in any; see {min(wrong)}.")


_Complaints: TypeAlias = list[tuple[bool, str]]


def _of_rounds(rules: JobRules) -> _Complaints:
    return [
        (
            not 1 <= rules.minimum <= rules.target <= rules.maximum,
            "It must hold that 1 ≤ minimum ≤ target ≤ maximum.",
        ),
        (not 1 <= rules.deadline_ms <= MAX_SPAN_MS, f"The deadline is 1 to {MAX_SPAN_MS} ms."),
        (rules.grace_ms > MAX_SPAN_MS, f"The grace is 0 to {MAX_SPAN_MS} ms."),
        (not 1 <= rules.rounds <= MAX_ROUNDS, f"A job has 1 to {MAX_ROUNDS} rounds."),
        (not 1 <= rules.max_failed <= MAX_ROUNDS, f"max_failed is 1 to {MAX_ROUNDS}."),
    ]


def _of_weights(rules: JobRules) -> _Complaints:
    graded = bool(rules.organisation_cap or rules.discounts)
    return [
        (
            rules.weights == EQUAL and rules.cap != 1 and not graded,
            "Under equal weights the cap is 1, but with a cap for organisations or discounts.",
        ),
        (
            rules.cap == 1 and rules.organisation_cap > 0,
            "An organisation's cap is divided among its members: one's own cap must be above 1.",
        ),
        (rules.share_ppm > 0 and rules.encoding != TopK.name, f"A share of values is for the encoding {TopK.name}."),
    ]


def _of_cohort(rules: JobRules) -> _Complaints:
    asked, drawn = rules.cohort, cohort_size(rules)
    return [
        (asked.check_in_ms > MAX_SPAN_MS, f"The check-in is 0 to {MAX_SPAN_MS} ms."),
        (asked.over_ppm > 0 and not asked.size, "Over-selection is of a cohort that is drawn: it needs a size."),
        (drawn > MAX_UPDATES, f"A cohort has at most {MAX_UPDATES} members, not {drawn}."),
        (0 < drawn < rules.target, f"A cohort of {drawn} never reaches the target of {rules.target}."),
    ]


def _of_mode(rules: JobRules) -> _Complaints:
    discounts = rules.discounts
    if rules.mode == SYNCHRONOUS:
        return [(bool(discounts), "Discounts are for updates of older models: the mode must be async.")]
    return [
        (is_listed(rules), "A job without rounds has no check-in and draws no cohort."),
        (not discounts, "A job without rounds says by `discounts` what an update weighs, by the age of its base."),
        (
            list(discounts) != sorted(discounts, reverse=True) or not all(1 <= each <= WHOLE for each in discounts),
            f"Discounts are 1 to {WHOLE} and do not rise with age.",
        ),
    ]


def _of_names(rules: JobRules) -> _Complaints:
    return [
        (len(set(rules.metrics)) != len(rules.metrics), "Each metric is named once."),
        (not all(map(is_name, rules.metrics)), "A metric's name is letters, digits, dot, dash, underscore."),
        (len(rules.app_digest) not in (0, 32), "The app's digest has 32 bytes, or none is given."),
    ]


def _check_config(rules: JobRules) -> None:
    places = [(entry.name, entry.from_round) for entry in rules.config]
    if places != sorted(set(places)):
        raise Refused("BAD_CONFIG")
    for entry in rules.config:
        if not is_name(entry.name):
            raise Refused("BAD_CONFIG", "A config entry's name is letters, digits, dot, dash, underscore.")
        if not _is_of_type(entry):
            raise Refused("BAD_CONFIG", f"The config entry {entry.name} is not a canonical {entry.type}.")


def _is_of_type(entry: ConfigEntry) -> bool:
    if entry.type == ConfigType.INTEGER:
        return _INTEGER.fullmatch(entry.value) is not None and -(2**63) <= int(entry.value) < 2**63
    if entry.type == ConfigType.DECIMAL:
        return _DECIMAL.fullmatch(entry.value) is not None
    return entry.type == ConfigType.STRING
