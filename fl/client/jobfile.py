"""The job file: one TOML that says all of a job, for `job create` and for every way to `run` it.

    name = "digits"
    app = "digits"                       # or package.module:object; fl.client.apps says what that is
    rounds = 20
    minimum = 0.8                        # of the target, which is all who train unless it is given
    privacy = "visible-to-validators"
    metrics = ["loss"]
    rule = "median"                      # or a table: [rule] with its name and its settings

    [model]                              # what the app's model() takes, or file = "model.npz"
    hidden = 64
    [config]                             # what the app's train() is given
    lr = {1 = 0.05, 10 = 0.01}           # or 0.05 for all rounds
    [cohort]                             # size, over, check_in_s
    [evaluation]                         # every, cohort, minimum, deadline_s, before_next, statistic, metrics
    [goal]                               # metric, larger, stop_at
    [groups]                             # head = ["output.weight", "output.bias"]
    [data]                               # partition = "iid" or "dirichlet", alpha, seed
    [simulation]                         # how simulated trainers behave: seconds, dropout, …

Nothing in it is ignored: what is not known is refused, with the word that was probably meant.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from fl.client.apps import Named, load_app
from fl.client.arrays import read_arrays
from fl.client.errors import BadFile, BadInput, QuorateError
from fl.client.jobdraft import Arrays, Draft, check_table, draft_job
from fl.client.partition import SEED, Partition
from fl.simulation.conditions import Conditions

MOST_BYTES = 1024 * 1024

_OF_THE_CHAIN: dict[str, type] = {
    "name": str,
    "rounds": int,
    "target": int,
    "minimum": float,
    "maximum": int,
    "deadline_s": float,
    "grace_s": float,
    "max_failed": int,
    "mode": str,
    "staleness": int,
    "weights": str,
    "cap": int,
    "organisation_cap": int,
    "encoding": str,
    "range_bits": int,
    "share": float,
    "frozen": list,
    "local": list,
    "privacy": str,
    "metrics": list,
    "app": str,
    "config": dict,
    "cohort": dict,
    "evaluation": dict,
    "goal": dict,
    "groups": dict,
}
_SIMULATION: dict[str, type] = {
    "seconds": float,
    "spread": float,
    "stragglers": float,
    "slowness": float,
    "dropout": float,
    "seed": int,
    "evaluators": int,
}


@dataclass(frozen=True, slots=True)
class JobFile:
    """`rules` are what `draft_job` takes, but for the model, the app and a target that is not given."""

    name: str
    rules: Mapping[str, Any]
    app: str
    model: Mapping[str, Any]
    partition: Partition
    conditions: Conditions
    beside: Path
    """The directory that names in it are relative to."""

    def load_app(self) -> Named:
        if not self.app:
            raise BadFile(
                "NO_APP", f"The job {self.name} names no app.", 'Running it needs one, as in: app = "digits".'
            )
        return load_app(self.app, self.beside)

    def draft(self, trainers: int | None = None) -> Draft:
        """What creates the job. Without a target in the file it is all of so many trainers, or the cohort of them."""
        rules = dict(self.rules)
        if "target" not in rules:
            size = rules.get("cohort", {}).get("size", 0)
            target = size or trainers
            if target is None:
                raise BadFile(
                    "NO_TARGET",
                    f"The job {self.name} names no target, and whoever creates it on a chain has to.",
                    "Say in its file how many updates end a round, as in target = 8; simulations know without.",
                )
            rules["target"] = target if trainers is None else min(target, trainers)
        named = self.load_app() if self.app else None
        own_roles = getattr(named.app, "roles", None) if named is not None and "file" not in self.model else None
        if own_roles is not None and not rules.keys() & {"frozen", "local"}:
            rules |= own_roles()
        return draft_job(
            self.name, self._model(named), **rules, app=self.app, app_digest=named.digest if named else b""
        )

    def _model(self, named: Named | None) -> Arrays:
        if "file" in self.model:
            if len(self.model) > 1:
                raise BadFile("BAD_JOB_FILE", "A model from a file takes no settings.", "Leave one of the two out.")
            return read_arrays(self.beside / str(self.model["file"]))
        if named is None:
            raise BadFile(
                "BAD_JOB_FILE", "The job has no model.", 'Name a file ([model] file = "model.npz") or an app.'
            )
        try:
            signature(named.app.model).bind(**self.model)
        except TypeError as error:
            raise BadFile(
                "BAD_JOB_FILE", f"The app {named.name} makes no such model: {error}.", "See [model]."
            ) from None
        try:
            return named.app.model(**self.model)
        except (ValueError, OverflowError, MemoryError) as error:
            raise BadFile(
                "BAD_JOB_FILE", f"The app {named.name} makes no such model: {error}.", "See [model]."
            ) from error


def read_job_file(path: Path) -> JobFile:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadFile("BAD_JOB_FILE", f"{path} is longer than {MOST_BYTES} bytes.", "Name another file.")
        return job_of(tomllib.loads(data.decode()), path.resolve().parent)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except BadInput as error:
        raise BadFile("BAD_JOB_FILE", f"{path}: {error.what}", error.todo) from None
    except QuorateError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadFile("BAD_JOB_FILE", f"{path} is no TOML: {error}.", "See quorate run --help.") from None


def job_of(content: Mapping[str, Any], beside: Path) -> JobFile:
    """A job file's content. Raises BadInput for whatever it should not hold."""
    given = dict(content)
    tables = {key: _table(given, key) for key in ("model", "data", "simulation")}
    rule = given.pop("rule", None)
    check_table("", given, {**_OF_THE_CHAIN, "model": dict, "data": dict, "simulation": dict, "rule": dict})
    lacking = [key for key in ("name", "rounds", "privacy") if key not in given]
    if lacking:
        raise BadInput("LACKING", f"It does not say {' and '.join(lacking)}.", "Every job has to.")
    rules = given | _rule(rule)
    if "config" in rules:
        rules["config"] = {key: _by_round(value) for key, value in rules["config"].items()}
    for key in ("frozen", "local", "metrics"):
        _check_texts(key, rules.get(key, []))
    for group, tensors in rules.get("groups", {}).items():
        _check_texts(group, tensors)
    name, app = rules.pop("name"), rules.pop("app", "")
    return JobFile(
        name, rules, app, tables["model"], _partition(tables["data"]), _conditions(tables["simulation"]), beside
    )


def _table(given: dict[str, Any], key: str) -> Mapping[str, Any]:
    table = given.pop(key, {})
    check_table("", {key: table}, {key: dict})
    return dict(table)


def _rule(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, str):
        return {"rule": given}
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise BadInput("WRONG_TYPE", "The rule has no name.", 'As in rule = "median", or [rule] name = "median".')
    settings = {key: value for key, value in given.items() if key != "name"}
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput("WRONG_TYPE", f"'{key}' in [rule] is {value!r}.", "Give a number.")
    return {"rule": given["name"], "settings": settings}


def _by_round(value: object) -> object:
    """TOML has no numbers for keys."""
    if not isinstance(value, dict):
        return value
    if not all(key.isdecimal() for key in value):
        raise BadInput("BAD_CONFIG", "A config value by rounds names them by number.", "As in lr = {1 = 0.1}.")
    return {int(key): each for key, each in value.items()}


def _check_texts(name: str, given: object) -> None:
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise BadInput("WRONG_TYPE", f"'{name}' is {given!r}.", 'Give a list of names, as in ["loss"].')


def _partition(given: Mapping[str, Any]) -> Partition:
    check_table("data", given, {"partition": str, "alpha": float, "seed": int})
    kind, seed = given.get("partition", "iid"), given.get("seed", SEED)
    if kind not in ("iid", "dirichlet"):
        raise BadInput("BAD_PARTITION", f"The partition {kind!r} is unknown.", "There are: iid, dirichlet.")
    if kind == "iid" and "alpha" in given:
        raise BadInput("BAD_PARTITION", "Only the partition dirichlet has an alpha.", "Leave it out.")
    alpha = float(given.get("alpha", 0.5))
    if not 0 < alpha < 1e6:
        raise BadInput("BAD_PARTITION", f"The alpha {alpha} is none.", "Give a positive number, as in 0.5.")
    if seed < 0:
        raise BadInput("BAD_PARTITION", f"The seed {seed} is none.", "Give 0 or more.")
    return Partition(alpha if kind == "dirichlet" else None, seed)


def _conditions(given: Mapping[str, Any]) -> Conditions:
    check_table("simulation", given, _SIMULATION)
    conditions = replace(Conditions(), **given)
    for name in ("stragglers", "dropout"):
        if not 0 <= getattr(conditions, name) <= 1:
            raise BadInput("BAD_SIMULATION", f"'{name}' is a share from 0 to 1.", "As in 0.1.")
    for name in ("seconds", "spread", "slowness", "seed", "evaluators"):
        if not 0 <= getattr(conditions, name) <= 1e9:
            raise BadInput("BAD_SIMULATION", f"'{name}' is 0 or more.", "Check [simulation].")
    return conditions
