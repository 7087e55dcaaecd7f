"""policy.toml: what a site admits, whoever asks. No creator of a job can override it.

It is looked at before a job is joined, before a round or an evaluation is offered, and before anything of them is sent;
the file is read again each time, so that a stricter one holds from the next task on. What it does not speak of, it
admits. `TEMPLATE` says all that it may speak of.
"""

from __future__ import annotations

import math
import os
import string
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.client.apps import BUILT_IN
from fl.client.errors import BadFile, BadInput, PolicyForbids
from fl.client.jobdraft import ConfigValue, check_table, config_value
from fl.client.site.hours import MOST_SPANS, Hours, span_of, zone_of
from fl.jobrules import PRIVACIES, kept_values
from fl.records import ConfigEntry, JobRules, Role
from fl.rules import RULES
from fl.tensors.encodings import ENCODINGS
from fl.tensors.model import model_form

POLICY_FILE = "policy.toml"
MOST_BYTES = 64 * 1024
_MOST_LISTED = 1024
_ROLES = (Role.TRAINER.value, Role.EVALUATOR.value)

TEMPLATE = """\
# What this site admits, whoever asks. A job that breaks a line of it is neither joined nor trained in.
# What the file does not speak of is admitted: take the # away where you want to say something.

# roles = ["trainer", "evaluator"]         # what this site does in jobs
# privacy = ["visible-to-validators"]      # who may see its updates
# encodings = ["f32", "q8"]                # how updates are written
# rules = ["fedavg", "median"]             # how they are aggregated
# creators = ["64 hex digits"]             # the accounts whose jobs are admitted
# datasets = ["trials-2026"]               # own data sets that may be named on joining, by name or id

# Code that may be trained with. Own code is admitted by the SHA-256 of its module's source, under a name or any.
# [[app]]
# name = "digits"                          # comes with Quorate, so it needs no digest
# [[app]]
# name = "hospital.model:app"
# digest = "64 hex digits"                 # sha256sum hospital/model.py

# What a job may have its trainers do, in every round that it names.
# [config]
# others = "refuse"                        # keys without bounds: "refuse" (if this section is there) or "allow"
# [config.bounds]
# lr = {min = 0.0001, max = 0.1}
# epochs = {max = 20}
# optimizer = {one_of = ["sgd", "adam"]}

# Among how many this site's update is.
# [cohort]
# minimum = 5                              # the fewest updates that a round may close with
# groups = false                           # jobs whose updates may be of some tensors only: a sum has fewer updates
# organisation_cap = 1000                  # the most that one organisation's members may weigh together

# What a model may take of this machine.
# [model]
# parameters = 10_000_000                  # averaged and frozen ones
# bytes = 100_000_000                      # of its file

# When this site works for others. A span over midnight belongs to the day on which it begins.
# [hours]
# zone = "Europe/Vienna"
# open = ["mon-fri 18:00-06:00", "sat,sun 00:00-24:00"]
# finish = true                            # send what was begun in time; false: keep it until the hours come again
"""


@dataclass(frozen=True, slots=True)
class AdmittedApp:
    """By name and digest, or by the digest alone. What comes with Quorate has none."""

    name: str
    digest: bytes

    def admits(self, name: str, digest: bytes) -> bool:
        return self.digest == digest and self.name in ("", name)


@dataclass(frozen=True, slots=True)
class Bound:
    """Of a value in a job's config."""

    least: float | None = None
    most: float | None = None
    one_of: tuple[ConfigValue, ...] | None = None

    def complaint(self, value: ConfigValue) -> str:
        """What is wrong with the value, or nothing."""
        if self.one_of is not None and value not in self.one_of:
            return f"one of {', '.join(map(str, self.one_of))}"
        if (self.least is not None or self.most is not None) and isinstance(value, str):
            return "a number"
        if self.least is not None and value < self.least:  # type: ignore[operator]
            return f"at least {self.least}"
        if self.most is not None and value > self.most:  # type: ignore[operator]
            return f"at most {self.most}"
        return ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one rule of the file makes of a job: `complaint` is empty if it admits it."""

    code: str
    rule: str
    """As the file has it."""
    complaint: str


@dataclass(frozen=True, slots=True)
class Policy:
    """None stands for what the file does not speak of."""

    source: str = POLICY_FILE
    roles: tuple[str, ...] | None = None
    privacy: tuple[str, ...] | None = None
    encodings: tuple[str, ...] | None = None
    rules: tuple[str, ...] | None = None
    creators: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    apps: tuple[AdmittedApp, ...] | None = None
    bounds: Mapping[str, Bound] | None = None
    other_config: bool = True
    minimum: int | None = None
    groups: bool = True
    organisation_cap: int | None = None
    parameters: int | None = None
    model_bytes: int | None = None
    hours: Hours | None = None

    # Jobs

    def check(self, rules: JobRules, *, creator: bytes | None = None, role: str = Role.TRAINER.value) -> None:
        """Raises PolicyForbids for a job under these rules. A job that is only drafted has no creator."""
        for ruling in self.rulings(rules, creator=creator, role=role):
            self._insist(ruling, rules.name)

    def rulings(
        self, rules: JobRules, *, creator: bytes | None = None, role: str = Role.TRAINER.value
    ) -> Iterator[Ruling]:
        """One for each rule of the file that jobs are held to, whether it admits this one or not."""
        for code, key, offered, given in (
            ("POLICY_ROLE", "roles", self.roles, role),
            ("POLICY_PRIVACY", "privacy", self.privacy, rules.privacy),
            ("POLICY_ENCODING", "encodings", self.encodings, rules.encoding),
            ("POLICY_RULE", "rules", self.rules, rules.rule),
            ("POLICY_CREATOR", "creators", self.creators, None if creator is None else creator.hex()),
        ):
            if offered is not None and given is not None:
                yield Ruling(code, f"{key}: {', '.join(offered)}", "" if given in offered else f"it has {given!r}")
        if self.apps is not None:
            yield self._app_ruling(rules.app, rules.app_digest)
        yield from self._config_rulings(rules)
        yield from self._cohort_rulings(rules)
        yield from self._model_rulings(rules)

    def check_app(self, name: str, digest: bytes) -> None:
        """Raises PolicyForbids for code that is about to be run here, whatever a job says of it."""
        if self.apps is not None:
            self._insist(self._app_ruling(name, digest), name)

    def check_dataset(self, name: str, identity: str) -> None:
        """Raises PolicyForbids for a data set that is about to be named to a job."""
        if self.datasets is not None:
            complaint = "" if {name, identity} & set(self.datasets) else f"this one is {name!r}"
            self._insist(Ruling("POLICY_DATASET", f"datasets: {', '.join(self.datasets)}", complaint), name)

    def _insist(self, ruling: Ruling, of: str) -> None:
        if ruling.complaint:
            raise PolicyForbids(
                ruling.code,
                f"This site's policy does not admit {of}: {self.source} says {ruling.rule}; {ruling.complaint}.",
                "Ask for other rules of the job, or whoever keeps the policy file for another line.",
            )

    def _app_ruling(self, name: str, digest: bytes) -> Ruling:
        apps = self.apps or ()
        admitted = any(each.admits(name, digest) for each in apps)
        shown = ", ".join(each.name or f"digest {each.digest.hex()[:16]}…" for each in apps)
        has = f"the app {name or '(none)'}" + (f" with the digest {digest.hex()}" if digest else " without a digest")
        return Ruling("POLICY_APP", f"[[app]] {shown}", "" if admitted else f"it has {has}")

    def _config_rulings(self, rules: JobRules) -> Iterator[Ruling]:
        if self.bounds is None:
            return
        for name, bound in self.bounds.items():
            wrong = [(each, bound.complaint(config_value(each))) for each in rules.config if each.name == name]
            said = next((f"{_shown(each)}, and wanted is {why}" for each, why in wrong if why), "")
            yield Ruling("POLICY_CONFIG", f"[config.bounds] {name}", said)
        if not self.other_config:
            unknown = sorted({each.name for each in rules.config} - self.bounds.keys())
            complaint = f"it gives {', '.join(unknown)} without bounds" if unknown else ""
            yield Ruling("POLICY_CONFIG", '[config] others = "refuse"', complaint)

    def _cohort_rulings(self, rules: JobRules) -> Iterator[Ruling]:
        if self.minimum is not None:
            few = rules.minimum < self.minimum
            complaint = f"its rounds may close with {rules.minimum}" if few else ""
            yield Ruling("POLICY_COHORT", f"[cohort] minimum = {self.minimum}", complaint)
        if not self.groups:
            complaint = "an update of it may be of one group of tensors" if rules.groups else ""
            yield Ruling("POLICY_COHORT", "[cohort] groups = false", complaint)
        if self.organisation_cap is not None:
            capped = 0 < rules.organisation_cap <= self.organisation_cap
            has = f"its cap is {rules.organisation_cap}" if rules.organisation_cap else "it has no such cap"
            yield Ruling("POLICY_COHORT", f"[cohort] organisation_cap = {self.organisation_cap}", "" if capped else has)

    def _model_rulings(self, rules: JobRules) -> Iterator[Ruling]:
        measured: tuple[tuple[str, int | None, Callable[[], int]], ...] = (
            ("parameters", self.parameters, lambda: kept_values(rules.schema)),
            ("bytes", self.model_bytes, lambda: model_form(rules.schema).size_bytes),
        )
        for what, most, measure in measured:
            if most is not None:
                size = measure()
                yield Ruling("POLICY_MODEL", f"[model] {what} = {most}", f"its model has {size}" if size > most else "")

    # Hours

    def wait_s(self, now_s: float) -> float:
        """Until tasks may be offered; 0 if they may be."""
        return 0.0 if self.hours is None else self.hours.wait_s(now_s)

    def holds_back_s(self, now_s: float) -> float:
        """Until what was trained in time may be sent; 0 if it may be."""
        return 0.0 if self.hours is None or self.hours.finish else self.hours.wait_s(now_s)


def _shown(entry: ConfigEntry) -> str:
    since = f" from round {entry.from_round} on" if entry.from_round > 1 else ""
    return f"its {entry.name} is {entry.value}{since}"


class PolicyFile:
    """The file that a site is held to, as it is when it is asked for. One that was named, or was seen, has to stay."""

    def __init__(self, path: Path, *, required: bool) -> None:
        self.path = path
        self.now: Callable[[], float] = time.time
        self._required = required
        self._data: bytes | None = None
        self._policy = Policy(str(path))

    def read(self) -> Policy:
        """Admits everything where there is no file. Raises BadFile for one that cannot be understood."""
        data = _content(self.path)
        if data is None:
            if self._required:
                raise BadFile(
                    "NO_POLICY",
                    f"The policy {self.path} is not there any more, or never was.",
                    "Put it back: without it nothing is admitted. To admit everything, leave an empty file.",
                )
            return self._policy
        if data != self._data:
            self._policy, self._data, self._required = parse_policy(data, self.path), data, True
        return self._policy

    def shown(self, after_s: float) -> str:
        """What the clock of the policy's zone shows so many seconds from now on."""
        hours = self._policy.hours
        return hours.shown(self.now() + after_s) if hours is not None else "once"

    @property
    def there(self) -> bool:
        return self._required or self.path.exists()


def policy_file(named: str | os.PathLike[str] | None, root: Path) -> PolicyFile:
    """The one that was named, or QUORATE_POLICY names; else the one in the home, if there is one."""
    chosen = named if named is not None else os.environ.get("QUORATE_POLICY") or None
    return PolicyFile(Path(chosen) if chosen is not None else root / POLICY_FILE, required=chosen is not None)


def read_policy(path: str | os.PathLike[str]) -> Policy:
    return PolicyFile(Path(path), required=True).read()


def _content(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        # A link that leads nowhere is a policy all the same: its disk may not be there yet.
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        raise BadFile(
            "UNREADABLE",
            f"The policy {path} cannot be read: {error.strerror}.",
            "Check the path and who may read it: without it nothing is admitted.",
        ) from error


def parse_policy(data: bytes, path: Path) -> Policy:
    if len(data) > MOST_BYTES:
        raise BadFile("BAD_POLICY", f"{path} is longer than {MOST_BYTES} bytes.", "Name another file.")
    try:
        return _policy(tomllib.loads(data.decode()), str(path))
    except BadInput as error:
        raise BadFile("BAD_POLICY", f"{path}: {error.what}", error.todo) from None
    except (ValueError, RecursionError) as error:
        raise BadFile("BAD_POLICY", f"{path} is no TOML: {error}.", "See quorate policy template.") from None


def _policy(given: Mapping[str, Any], source: str) -> Policy:
    lists: dict[str, tuple[str, ...] | None] = {
        "roles": _ROLES,
        "privacy": PRIVACIES,
        "encodings": tuple(ENCODINGS),
        "rules": tuple(RULES),
        "creators": None,
        "datasets": None,
    }
    check_table(
        "",
        given,
        dict.fromkeys(lists, list) | {"app": list} | dict.fromkeys(("config", "cohort", "model", "hours"), dict),
    )
    named = {key: _words(key, given[key], offered) for key, offered in lists.items() if key in given}
    for account in named.get("creators", ()):
        _hex("creators", account)
    config, cohort, model = (given.get(key, {}) for key in ("config", "cohort", "model"))
    check_table("config", config, {"others": str, "bounds": dict})
    check_table("cohort", cohort, {"minimum": int, "groups": bool, "organisation_cap": int})
    check_table("model", model, {"parameters": int, "bytes": int})
    for table, key in ((cohort, "minimum"), (cohort, "organisation_cap"), (model, "parameters"), (model, "bytes")):
        if key in table and table[key] < 1:
            raise BadInput("BAD_NUMBER", f"'{key}' is {table[key]}.", "Give 1 or more.")
    return Policy(
        source=source,
        **{key: tuple(each.lower() for each in found) if key == "creators" else found for key, found in named.items()},
        apps=_apps(given["app"]) if "app" in given else None,
        bounds=_bounds(config.get("bounds", {})) if "config" in given else None,
        other_config=_others(config) if "config" in given else True,
        minimum=cohort.get("minimum"),
        groups=cohort.get("groups", True),
        organisation_cap=cohort.get("organisation_cap"),
        parameters=model.get("parameters"),
        model_bytes=model.get("bytes"),
        hours=_hours(given["hours"]) if "hours" in given else None,
    )


def _words(key: str, given: list[Any], offered: tuple[str, ...] | None) -> tuple[str, ...]:
    if not given or len(given) > _MOST_LISTED or not all(isinstance(each, str) and each for each in given):
        raise BadInput(
            "WRONG_TYPE", f"'{key}' is {given!r:.200}.", "Give a list of words; leave it out to admit all of them."
        )
    if offered is not None:
        check_table(key, dict.fromkeys(given), dict.fromkeys(offered, object))
    return tuple(given)


def _hex(key: str, text: str) -> bytes:
    if len(text) != 64 or set(text) - set(string.hexdigits):
        raise BadInput("BAD_DIGEST", f"'{key}' has {text!r:.80}.", "Give 64 hex digits.")
    return bytes.fromhex(text)


def _apps(given: list[Any]) -> tuple[AdmittedApp, ...]:
    if not given or len(given) > _MOST_LISTED or not all(isinstance(each, dict) for each in given):
        raise BadInput("WRONG_TYPE", "'app' is no list of tables.", 'As in [[app]] name = "digits".')
    return tuple(map(_app, given))


def _app(given: Mapping[str, Any]) -> AdmittedApp:
    check_table("[app]", given, {"name": str, "digest": str})
    name, digest = given.get("name", ""), given.get("digest")
    if digest is None and name not in BUILT_IN:
        raise BadInput(
            "NO_DIGEST",
            f"The app {name!r} has no digest." if name else "An app has neither a name nor a digest.",
            f"Own code is admitted by its digest; only what comes with Quorate needs none: {', '.join(BUILT_IN)}.",
        )
    if digest is not None and name in BUILT_IN:
        raise BadInput("BAD_DIGEST", f"The app {name} comes with Quorate and has no digest.", "Leave the digest out.")
    return AdmittedApp(name, b"" if digest is None else _hex("digest", digest))


def _others(config: Mapping[str, Any]) -> bool:
    others = config.get("others", "refuse")
    if others not in ("refuse", "allow"):
        raise BadInput("WRONG_TYPE", f"'others' in [config] is {others!r}.", 'Give "refuse" or "allow".')
    return bool(others == "allow")


def _bounds(given: Mapping[str, Any]) -> dict[str, Bound]:
    check_table("config.bounds", given, dict.fromkeys(given, dict))
    return {name: _bound(name, table) for name, table in given.items()}


def _bound(name: str, given: Mapping[str, Any]) -> Bound:
    place = f"config.bounds.{name}"
    check_table(place, given, {"min": float, "max": float, "one_of": list})
    least, most, one_of = given.get("min"), given.get("max"), given.get("one_of")
    if not given or not all(math.isfinite(each) for each in (least, most) if each is not None):
        raise BadInput("BAD_BOUND", f"[{place}] bounds nothing.", "Give a finite min or max, or one_of.")
    if least is not None and most is not None and least > most:
        raise BadInput("BAD_BOUND", f"[{place}] has a min above its max.", "Nothing is between them.")
    if one_of is None:
        return Bound(least, most)
    if not one_of or len(one_of) > _MOST_LISTED or not all(type(each) in (int, float, str) for each in one_of):
        raise BadInput("BAD_BOUND", f"'one_of' in [{place}] is {one_of!r:.200}.", "Give a list of numbers or texts.")
    return Bound(least, most, tuple(one_of))


def _hours(given: Mapping[str, Any]) -> Hours:
    check_table("hours", given, {"zone": str, "open": list, "finish": bool})
    if "zone" not in given or "open" not in given:
        raise BadInput("LACKING", "[hours] lacks zone or open.", 'As in zone = "UTC", open = ["18:00-06:00"].')
    spans = given["open"]
    if not 1 <= len(spans) <= MOST_SPANS or not all(isinstance(each, str) for each in spans):
        raise BadInput(
            "BAD_HOURS", "'open' in [hours] is no list of spans.", f'1 to {MOST_SPANS}, as in ["18:00-06:00"].'
        )
    return Hours(given["zone"], zone_of(given["zone"]), tuple(map(span_of, spans)), given.get("finish", True))
