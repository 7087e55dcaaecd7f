"""A job's rules: what can be asked of the chain, within which limits, and how members name what they accept."""

from __future__ import annotations

import re
from functools import lru_cache

from chain.cid import raw_cid
from chain.codec import encode
from chain.genesis import Params
from chain.hashing import Domain, digest
from chain.unixfs import MAX_FILE_BYTES, manifest_cid, zeros_manifest
from fl.blobs import Demand, model_demand
from fl.errors import Refused
from fl.evaluationrules import evaluation_complaints
from fl.members import is_name
from fl.records import (
    MAX_ROUNDS,
    MAX_SPAN_MS,
    ConfigEntry,
    ConfigType,
    JobRules,
)
from fl.tensors.encodings import ENCODINGS, Place
from fl.tensors.grid import Grid
from fl.tensors.layout import Schema, check_schema, layout_of, model_tensors
from fl.tensors.model import check_model, model_form
from fl.tensors.ring32 import Ring32
from fl.updates import form_of

SYNCHRONOUS = "sync"
FEDAVG = "fedavg"
EQUAL = "equal"
EXAMPLES = "examples"
DATASET = "dataset"
VISIBLE_TO_VALIDATORS = "visible-to-validators"

_OFFERED: dict[str, tuple[str, ...]] = {
    "mode": (SYNCHRONOUS,),
    "rule": (FEDAVG,),
    # Masked updates wait for the phases in which they are unmasked.
    "encoding": tuple(name for name in ENCODINGS if name != Ring32.name),
    "privacy": (VISIBLE_TO_VALIDATORS,),
}
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
_LONGEST = Place(bytes(32), 2**64 - 1, bytes(32))


def rules_hash(rules: JobRules) -> bytes:
    return digest(Domain.RULES, encode(rules))


def parameters_of(schema: Schema) -> int:
    """Of the averaged tensors."""
    return layout_of(schema).parameters


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
    for field, offered in _OFFERED.items():
        if (given := getattr(rules, field)) not in offered:
            raise Refused("NOT_SUPPORTED", f"The {field} {given!r} is not offered; there is: {', '.join(offered)}.")
    for failed, sentence in _complaints(rules):
        if failed:
            raise Refused("BAD_RULES", sentence)
    grid_of(rules)
    _check_config(rules)
    _check_sizes(rules, params)


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


def _check_sizes(rules: JobRules, params: Params) -> None:
    check_schema(rules.schema, params.job_parameters)
    # Before anything is made whose size grows with the model's.
    _check_fits("The model's tensors", sum(each.size_bytes for each in model_tensors(rules.schema)))
    _check_fits("The model", model_form(rules.schema).size_bytes)
    _check_fits("An update", form_of(rules, 0).size_bytes(_LONGEST))


def _check_fits(what: str, size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise Refused("OVERSIZE", f"{what} would take {size_bytes} bytes; a blob has at most {MAX_FILE_BYTES}.")


def _complaints(rules: JobRules) -> list[tuple[bool, str]]:
    return [
        (rules.weights not in (EQUAL, EXAMPLES), "Weights are 'equal' or by 'examples'."),
        (rules.weights == EQUAL and rules.cap != 1, "Under equal weights the cap is 1."),
        (
            not 1 <= rules.minimum <= rules.target <= rules.maximum,
            "It must hold that 1 ≤ minimum ≤ target ≤ maximum.",
        ),
        (not 1 <= rules.deadline_ms <= MAX_SPAN_MS, f"The deadline is 1 to {MAX_SPAN_MS} ms."),
        (rules.grace_ms > MAX_SPAN_MS, f"The grace is 0 to {MAX_SPAN_MS} ms."),
        (not 1 <= rules.rounds <= MAX_ROUNDS, f"A job has 1 to {MAX_ROUNDS} rounds."),
        (not 1 <= rules.max_failed <= MAX_ROUNDS, f"max_failed is 1 to {MAX_ROUNDS}."),
        (len(set(rules.metrics)) != len(rules.metrics), "Each metric is named once."),
        (not all(map(is_name, rules.metrics)), "A metric's name is letters, digits, dot, dash, underscore."),
        (len(rules.app_digest) not in (0, 32), "The app's digest has 32 bytes, or none is given."),
        *evaluation_complaints(rules),
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
