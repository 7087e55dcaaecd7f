"""Training code as a job names it: `digits`, which comes with Quorate, `package.module:object` of one's own, or
`flower:package.module:object`, an app of Flower's.

An app is an object with four methods, and may have a fifth:

    model(**settings)                      the initial model: names to arrays; settings are the job file's [model]
    data()                                 (x, y) to train on and (x, y) held out: rows, and the label of each
    train(model, data, config, chance)     weights, examples and metrics of a round; chance is a numpy Generator. In a
                                           job with groups of tensors, the weights of one group
    evaluate(model, data)                  examples and metrics of a model on data
    parts(count, chance)                   the data of each of `count` trainers, if x and y do not fit; data() then
                                           gives None and what is held out, in any form that evaluate takes

What train and evaluate are given as `data` is a part: rows with x and y, or whatever `parts` made.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fl.client.appguard import Guarded, blamed
from fl.client.digits import CLASSES, FEATURES, load_digits
from fl.client.errors import BadInput
from fl.client.jobdraft import Arrays, ConfigValue, check_table
from fl.client.partition import SEED, Partition, divided
from fl.client.perceptron import Data, accuracy, initial_model, mean_loss, train
from fl.records import JobRules
from fl.tensors.layout import AVERAGED

ACCURACY, LOSS = "accuracy", "loss"

Trained = tuple[Arrays, int, Mapping[str, float]]
Measured = tuple[int, Mapping[str, float]]
Settings = str | Mapping[str, Any] | None
"""Of an app of Flower's: as text, "lr=0.1 optimizer='sgd'", or by name."""

FLOWER = "flower:"
"""Before the name of an app of Flower's."""


class App(Protocol):
    def model(self, *args: Any, **settings: Any) -> Arrays: ...

    def data(self) -> tuple[Any, Any]: ...

    def train(
        self, model: Arrays, data: Any, config: Mapping[str, ConfigValue], chance: np.random.Generator
    ) -> Trained: ...

    def evaluate(self, model: Arrays, data: Any) -> Measured: ...


class Digits:
    """scikit-learn's handwritten digits and a small classifier in numpy."""

    def model(self, hidden: int = 64, seed: int = SEED) -> Arrays:
        """Without hidden values it is a softmax regression."""
        return initial_model(FEATURES, hidden, CLASSES, seed)

    def data(self) -> tuple[Data, Data]:
        return load_digits()

    def train(
        self, model: Arrays, data: Data, config: Mapping[str, ConfigValue], chance: np.random.Generator
    ) -> Trained:
        check_table("config", config, dict.fromkeys(_NUMBERS, float) | dict.fromkeys(_COUNTS, int))
        numbers = {name: float(config.get(name, usual)) for name, usual in _NUMBERS.items()}
        counts = {name: int(config.get(name, usual)) for name, usual in _COUNTS.items()}
        weights, loss = train(
            model,
            data,
            chance,
            lr=numbers["lr"],
            momentum=numbers["momentum"],
            epochs=counts["epochs"],
            batch=counts["batch"],
        )
        return weights, len(data), {LOSS: loss}

    def evaluate(self, model: Arrays, data: Data) -> Measured:
        return len(data), {ACCURACY: accuracy(model, data), LOSS: mean_loss(model, data)}


_NUMBERS = {"lr": 0.05, "momentum": 0.9}
_COUNTS = {"epochs": 10, "batch": 16}
"""What a job's config may set, and what holds if it does not."""

BUILT_IN: dict[str, type[App]] = {"digits": Digits}


def named_metrics(names: Sequence[str], found: Mapping[str, float]) -> dict[str, float]:
    """Those that a job names, among what its app gives."""
    lacking = [name for name in names if name not in found]
    if lacking:
        raise BadInput(
            "BAD_METRICS",
            f"The job names the metrics {', '.join(names)}, and its app gives no {', '.join(lacking)}.",
            "Change one of the two.",
        )
    return {name: found[name] for name in names}


def answered_group(rules: JobRules, weights: Arrays) -> tuple[int, dict[str, Any]]:
    """The group of tensors that an answer is for, by its place, and its tensors: what an app gives beside them is left
    out. In a job without groups that is 0 and all averaged ones."""
    averaged = {each.name: each.shape for each in rules.schema.tensors if each.role == AVERAGED}
    given = {name: array for name, array in weights.items() if name in averaged}
    for name, array in given.items():
        if np.shape(array) != averaged[name]:
            raise BadInput(
                "WRONG_SHAPE",
                f"The app gives {name} the shape {np.shape(array)}, and in the model it has {averaged[name]}.",
                "Return the model's tensors as they came, with other values.",
            )
    if not rules.groups:
        if lacking := averaged.keys() - given.keys():
            raise BadInput("UNKNOWN_TENSOR", f"The app gives no {', '.join(sorted(lacking))}.", "Return all tensors.")
        return 0, given
    for number, group in enumerate(rules.groups):
        if set(group.tensors) == given.keys():
            return number, given
    raise BadInput(
        "UNKNOWN_GROUP",
        f"The app gives the tensors {', '.join(given)}, which are no group of this job.",
        f"Return those of one: {', '.join(group.name for group in rules.groups)}.",
    )


@dataclass(frozen=True, slots=True)
class Named:
    """An app under the name that a job has for it; `digest` of its module's source, empty if it comes with us."""

    name: str
    app: App
    digest: bytes


def load_app(name: str, beside: Path, *, run_config: Settings = None, node_config: Settings = None) -> Named:
    """Modules are looked for in the directory `beside` first: their code runs here, so they are the caller's own. The
    two configs are for apps of Flower."""
    if name in BUILT_IN:
        return Named(name, BUILT_IN[name](), b"")
    is_flower = name.startswith(FLOWER)
    reference = name.removeprefix(FLOWER)
    module_name, _, attribute = reference.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        known = ", ".join(BUILT_IN)
        raise BadInput(
            "UNKNOWN_APP",
            f"There is no app '{name}'.",
            f"There is {known}; own code is package.module:name, an app of Flower's flower:package.module:name.",
        )
    home = beside.resolve()
    with blamed(name, home), _importing_from(home, module_name):
        if is_flower:
            from fl.client.adapters.flower import load

            app: Any = load(reference, run_config=run_config, node_config=node_config)
        else:
            app = _attribute(name, module_name, attribute)
    lacking = [each for each in ("model", "data", "train", "evaluate") if not callable(getattr(app, each, None))]
    if lacking:
        raise BadInput("BAD_APP", f"The app {name} has no {', '.join(lacking)}.", "See fl/client/apps.py.")
    source = getattr(sys.modules.get(module_name), "__file__", None)
    digest = sha256(Path(source).read_bytes()).digest() if source else b""
    return Named(name, Guarded(name, app, home), digest)


def load_object(name: str, beside: Path, make: Callable[[], Any] | None = None) -> Any:
    """What `package.module:object` is, or what `make` makes while the module's directory is looked into first."""
    module_name, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise BadInput("UNKNOWN_APP", f"'{name}' names nothing.", "Write package.module:object.")
    home = beside.resolve()
    with blamed(name, home), _importing_from(home, module_name):
        return make() if make is not None else _attribute(name, module_name, attribute)


def _attribute(name: str, module_name: str, attribute: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            # The module is there, and lacks a package that it uses.
            raise
        raise BadInput("UNKNOWN_APP", f"{name} cannot be loaded: {error}.", "Check its name.") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise BadInput("UNKNOWN_APP", f"{name} cannot be loaded: {error}.", "Check its name.") from error


@contextmanager
def _importing_from(home: Path, module_name: str) -> Iterator[None]:
    """A module of the same name from another directory makes room: many are called `app`."""
    relative = Path(*module_name.split("."))
    if any((home / each).exists() for each in (relative.with_suffix(".py"), relative / "__init__.py")):
        top = module_name.partition(".")[0]
        known = getattr(sys.modules.get(module_name), "__file__", None)
        if known is not None and not Path(known).resolve().is_relative_to(home):
            for each in [each for each in sys.modules if each == top or each.startswith(f"{top}.")]:
                del sys.modules[each]
    sys.path.insert(0, str(home))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(home))


@dataclass(frozen=True, slots=True)
class Holdings:
    """Who has what: a part for each trainer, and what none of them has."""

    parts: Sequence[Any]
    held_out: Any

    def shares(self, count: int) -> list[Any]:
        """What is held out, for several evaluators. Whole for each, if it is not rows; if it is nothing, the parts."""
        if self.held_out is None:
            return [self.parts[number % len(self.parts)] for number in range(count)]
        if not isinstance(self.held_out, Data):
            return [self.held_out] * count
        return [self.held_out.take(np.arange(start, len(self.held_out), count)) for start in range(count)]


def holdings(app: App, count: int, partition: Partition) -> Holdings:
    training, held_out = (_rows(each) for each in app.data())
    make = getattr(app, "parts", None)
    if make is not None:
        parts = list(make(count, np.random.default_rng([partition.seed, count])))
        if len(parts) != count:
            raise BadInput("BAD_APP", f"The app made {len(parts)} parts of {count}.", "One for each trainer is needed.")
        return Holdings(parts, held_out)
    if not isinstance(training, Data):
        raise BadInput("BAD_APP", "The app's data() gives no x and y.", "Return (x, y), (x, y), or define parts().")
    return Holdings([training.take(rows) for rows in divided(training.y, count, partition)], held_out)


def _rows(given: Any) -> Any:
    if isinstance(given, tuple) and len(given) == 2:
        x, y = np.asarray(given[0]), np.asarray(given[1])
        if len(x) == len(y) and y.ndim == 1:
            return Data(x, y)
    return given
