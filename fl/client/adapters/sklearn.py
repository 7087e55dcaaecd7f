"""scikit-learn estimators in a job: linear models and multilayer perceptrons.

    import quorate, quorate.sklearn

    model = quorate.sklearn.prepare(SGDClassifier(), features=64, classes=range(10))
    job = network.create_job("digits", quorate.sklearn.arrays(model), rounds=10, …)

    for task in job.tasks():
        quorate.sklearn.load(model, task.model)
        model.partial_fit(x, y)
        task.submit(weights=quorate.sklearn.weights(model), examples=len(y))

An estimator has no weights before it is fitted, and those that `fit` gives it depend on the classes that it sees. All
members therefore `prepare` theirs in the same way: with the classes of the whole job, whatever their own data holds.
After `load`, `predict` and `score` work, and training goes on from the loaded weights with `partial_fit`, or with `fit`
and `warm_start=True`. Where a member lacks a class, use `partial_fit`: `fit` would forget it, which is refused.

The tensors have scikit-learn's names: `coef_` and `intercept_`, or `coefs_.0`, `intercepts_.0`, … of a perceptron; all
of them are averaged, in float32 on the chain, and come back in the estimator's own dtype.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.adapters.faults import missing_package, missing_tensor, unknown_tensor, wrong_shape
from fl.client.apps import Measured, Trained
from fl.client.errors import BadInput
from fl.client.jobdraft import Arrays, ConfigValue
from fl.client.partition import SEED

Estimator = Any

LINEAR = (
    "LinearRegression",
    "LinearSVC",
    "LogisticRegression",
    "Perceptron",
    "Ridge",
    "SGDClassifier",
    "SGDRegressor",
)
LAYERED = ("MLPClassifier", "MLPRegressor")

_PREPARED = "quorate_classes_"
"""An attribute of a prepared classifier: the classes of the whole job."""

_OF_THE_OPTIMISER = ("_optimizer", "loss_")


def prepare(
    estimator: Estimator,
    features: int,
    classes: Iterable[Any] | None = None,
    *,
    seed: int = SEED,
    dtype: Any = np.float64,
) -> Estimator:
    """The same estimator, ready for `arrays` and `load` without any data: linear weights are zeros, those of a
    perceptron are drawn from `seed`. Classifiers need the `classes` of the whole job. `dtype` is that of the rows that
    it will be trained on: SGD goes on from weights of the same only."""
    _check_known(estimator)
    if features < 1:
        raise BadInput("BAD_MODEL", f"An estimator of {features} features?", "Give 1 or more.")
    from sklearn.base import is_classifier

    known = _classes(estimator, classes) if is_classifier(estimator) else None
    if known is None and classes is not None:
        raise BadInput("BAD_MODEL", f"{_name(estimator)} knows no classes.", "Leave `classes` out.")
    _adopt(estimator, _fitted(estimator, features, known, dtype))
    if known is not None:
        setattr(estimator, _PREPARED, known)
    if _name(estimator) in LAYERED:
        _draw(estimator, seed)
    else:
        load(estimator, {name: np.zeros_like(array) for name, array in arrays(estimator).items()})
    return estimator


def arrays(estimator: Estimator) -> dict[str, NDArray[Any]]:
    """The estimator's weights by name, copied: the model that a job starts from."""
    return {name: np.array(array) for name, array in _weights(estimator).items()}


def roles(estimator: Estimator) -> dict[str, list[str]]:
    """For `create_job(…, **roles(estimator))`, as with modules: all weights are averaged."""
    _check_known(estimator)
    return {"frozen": [], "local": []}


def load(estimator: Estimator, arrays: Arrays) -> None:
    """A task's arrays, into an estimator that is prepared or fitted. If anything does not fit, BadInput names it and
    the estimator stays as it was."""
    own = _weights(estimator)
    given = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in given.items():
        if name not in own:
            raise unknown_tensor(name, _name(estimator))
        if array.shape != own[name].shape:
            raise wrong_shape(name, array.shape, own[name].shape)
    for name in own:
        if name not in given:
            raise missing_tensor(name, "Use the model that the job was made with.")
    for name, array in given.items():
        _set(estimator, name, np.array(array, own[name].dtype, order="C"))
    _forget(estimator)


def weights(estimator: Estimator) -> dict[str, NDArray[Any]]:
    """What to submit after training, copied."""
    return arrays(estimator)


def draft(
    factory: Callable[[], Estimator] | Estimator,
) -> tuple[dict[str, NDArray[Any]], dict[str, list[str]]]:
    """Arrays and roles of a prepared estimator, or of what a function makes without arguments: all that a job file has
    to know of it."""
    estimator = factory() if callable(factory) else factory
    return arrays(estimator), roles(estimator)


Work = Callable[[Estimator, Any, Mapping[str, ConfigValue]], tuple[int, Mapping[str, float]]]


class SklearnApp:
    """An app of an estimator and three functions, to be named in a job file as `package.module:object`.

        app = SklearnApp(estimator, data, train, evaluate)

        def estimator(): ...                      a prepared one
        def data(): ...                           (x, y) to train on, (x, y) held out
        def train(estimator, data, config): ...   trains it; gives the number of examples and metrics
        def evaluate(estimator, data): ...        gives the number of examples and metrics

    Each round begins with an estimator made anew, whose `random_state` is the round's own where it was left open.
    `parts` deals out data that is not rows, as fl/client/apps.py says."""

    def __init__(
        self,
        estimator: Callable[[], Estimator],
        data: Callable[[], tuple[Any, Any]],
        train: Work,
        evaluate: Callable[[Estimator, Any], Measured],
        *,
        parts: Callable[[int, np.random.Generator], Sequence[Any]] | None = None,
    ) -> None:
        self._estimator = estimator
        self._train = train
        self._evaluate = evaluate
        self.data = data
        if parts is not None:
            self.parts = parts

    def model(self) -> Arrays:
        """The initial model."""
        return arrays(self._estimator())

    def train(
        self, model: Arrays, data: Any, config: Mapping[str, ConfigValue], chance: np.random.Generator
    ) -> Trained:
        """What the function `train` makes of the model."""
        estimator = self._loaded(model)
        if estimator.get_params().get("random_state", 0) is None:
            estimator.set_params(random_state=int(chance.integers(2**31)))
        examples, metrics = self._train(estimator, data, config)
        return weights(estimator), examples, metrics

    def evaluate(self, model: Arrays, data: Any) -> Measured:
        """What the function `evaluate` finds."""
        return self._evaluate(self._loaded(model), data)

    def _loaded(self, model: Arrays) -> Estimator:
        estimator = self._estimator()
        load(estimator, model)
        return estimator


# What an estimator holds


def _weights(estimator: Estimator) -> dict[str, NDArray[Any]]:
    _check_known(estimator)
    held = ("coefs_", "intercepts_") if _name(estimator) in LAYERED else ("coef_", "intercept_")
    if not all(hasattr(estimator, each) for each in held):
        raise BadInput(
            "NOT_PREPARED",
            f"This {_name(estimator)} has no weights yet.",
            "Call prepare(estimator, features, classes).",
        )
    known = getattr(estimator, _PREPARED, None)
    if known is not None and not np.array_equal(known, estimator.classes_):
        raise BadInput(
            "WRONG_CLASSES",
            f"The estimator was fitted to the classes {_shown(estimator.classes_)}, and the job is of {_shown(known)}.",
            "Train with partial_fit, or on data of all classes.",
        )
    if _name(estimator) not in LAYERED:
        return {each: np.asarray(getattr(estimator, each)) for each in held}
    return {f"{each}.{layer}": array for each in held for layer, array in enumerate(getattr(estimator, each))}


def _set(estimator: Estimator, name: str, array: NDArray[Any]) -> None:
    held, _, layer = name.partition(".")
    if layer:
        getattr(estimator, held)[int(layer)] = array
    else:
        setattr(estimator, held, array if array.ndim else float(array))


def _forget(estimator: Estimator) -> None:
    """What training has noted of other weights: whether it was still getting anywhere."""
    if _name(estimator) in LAYERED:
        early = estimator.early_stopping
        estimator.validation_scores_ = [] if early else None
        estimator.best_validation_score_ = -math.inf if early else None
        estimator.best_loss_ = None if early else math.inf
        estimator._no_improvement_count = 0


def _fitted(estimator: Estimator, features: int, classes: NDArray[Any] | None, dtype: Any) -> Estimator:
    """A copy that was fitted to an empty row of each class: only scikit-learn knows all that it sets then."""
    from sklearn.base import clone

    copy = clone(estimator)
    # None of these changes what is set, and each is refused by partial_fit.
    usual: dict[str, Any] = {"early_stopping": False, "class_weight": None}
    if _name(estimator) in LAYERED:
        usual["solver"] = "adam"
    copy.set_params(**{name: value for name, value in usual.items() if name in copy.get_params()})
    rows = np.zeros((2 if classes is None else len(classes), features), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(copy, "partial_fit"):
            copy.partial_fit(rows, np.zeros(len(rows)) if classes is None else classes, **_named(classes))
        else:
            copy.fit(rows, np.zeros(len(rows)) if classes is None else classes)
    return copy


def _named(classes: NDArray[Any] | None) -> dict[str, Any]:
    return {} if classes is None else {"classes": classes}


def _adopt(estimator: Estimator, fitted: Estimator) -> None:
    settings = estimator.get_params(deep=False)
    for name, value in vars(fitted).items():
        if name not in settings and name not in _OF_THE_OPTIMISER:
            setattr(estimator, name, value)
    if hasattr(estimator, "t_"):
        estimator.t_ = 0 if _name(estimator) in LAYERED else 1.0
    if hasattr(estimator, "loss_curve_"):
        estimator.loss_curve_ = []
    _forget(estimator)


def _draw(estimator: Estimator, seed: int) -> None:
    """As scikit-learn draws them (Glorot's bound), from a seed that all members share."""
    chance = np.random.default_rng(seed)
    factor = 2.0 if estimator.activation == "logistic" else 6.0
    for layer, array in enumerate(estimator.coefs_):
        bound = math.sqrt(factor / sum(array.shape))
        estimator.coefs_[layer] = chance.uniform(-bound, bound, array.shape).astype(array.dtype)
        estimator.intercepts_[layer] = chance.uniform(-bound, bound, array.shape[1]).astype(array.dtype)


def _classes(estimator: Estimator, given: Iterable[Any] | None) -> NDArray[Any]:
    known = np.unique(np.asarray(list(given))) if given is not None else np.zeros(0)
    if len(known) < 2:
        raise BadInput(
            "NO_CLASSES", f"{_name(estimator)} needs the classes of the whole job.", "As in classes=range(10)."
        )
    return known


def _check_known(estimator: Estimator) -> None:
    try:
        from sklearn.base import BaseEstimator
    except ImportError:
        raise missing_package("scikit-learn", "sklearn") from None
    if not isinstance(estimator, BaseEstimator) or _name(estimator) not in (*LINEAR, *LAYERED):
        raise BadInput(
            "UNKNOWN_ESTIMATOR",
            f"{type(estimator).__name__} has no weights that could be averaged here.",
            f"There are: {', '.join(sorted((*LINEAR, *LAYERED)))}.",
        )
    if getattr(estimator, "average", False):
        raise BadInput("BAD_MODEL", f"This {_name(estimator)} averages over its own steps.", "Set average=False.")


def _name(estimator: Estimator) -> str:
    """Of the first of its classes that is known: own subclasses count."""
    names = (each.__name__ for each in type(estimator).__mro__ if each.__module__.startswith("sklearn."))
    return next(names, type(estimator).__name__)


def _shown(classes: NDArray[Any]) -> str:
    return ", ".join(map(str, classes[:20])) + (", …" if len(classes) > 20 else "")
