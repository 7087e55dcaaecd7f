from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

import quorate.sklearn
from fl.client.apps import answered_group, holdings
from fl.client.errors import BadInput
from fl.client.jobdraft import draft_job
from fl.client.partition import Partition
from fl.tensors.model import parse_model

RULES: dict[str, Any] = {"rounds": 1, "target": 1, "privacy": "visible-to-validators"}
CHANCE = np.random.default_rng(5)
X = CHANCE.normal(size=(240, 6))
CLASSES = ("cat", "dog", "eel")
LABELS = np.array(CLASSES)[(X @ CHANCE.normal(size=(6, 3))).argmax(axis=1)]
VALUES = X @ CHANCE.normal(size=6) + 0.5

CLASSIFIERS = (
    LogisticRegression(warm_start=True),
    LogisticRegression(warm_start=True, fit_intercept=False),
    SGDClassifier(random_state=1),
    SGDClassifier(random_state=1, class_weight="balanced", early_stopping=True),
    Perceptron(random_state=1),
    LinearSVC(random_state=1),
    MLPClassifier((8,), max_iter=50, random_state=1, learning_rate_init=0.05),
    MLPClassifier((8, 4), max_iter=60, random_state=1, early_stopping=True, warm_start=True, learning_rate_init=0.05),
    MLPClassifier((8,), solver="lbfgs", warm_start=True, random_state=1),
)
REGRESSORS = (
    LinearRegression(),
    Ridge(),
    Ridge(fit_intercept=False),
    SGDRegressor(random_state=1),
    MLPRegressor(hidden_layer_sizes=(8,), max_iter=100, random_state=1, learning_rate_init=0.05),
)


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """A few steps are no convergence, and are not meant to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fresh(estimator: Any) -> Any:
    return type(estimator)(**estimator.get_params())


def prepared(estimator: Any, **more: Any) -> Any:
    classes = CLASSES if is_classifier(estimator) else None
    return quorate.sklearn.prepare(fresh(estimator), 6, classes, **more)


def target(estimator: Any) -> NDArray[Any]:
    return LABELS if is_classifier(estimator) else VALUES


def through_a_job(estimator: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a task of a job that starts from the estimator."""
    arrays, roles = quorate.sklearn.draft(estimator)
    drafted = draft_job("job", arrays, **RULES, **roles)
    form = dict.fromkeys(arrays)
    model = parse_model(drafted.rules.schema, drafted.model) if drafted.model else {}
    return {name: model.get(name, np.zeros_like(arrays[name], np.float32)) for name in form}


def refused(code: str, named: str, act: Any, *given: Any, **more: Any) -> None:
    with pytest.raises(BadInput) as error:
        act(*given, **more)
    assert error.value.code == code and named in str(error.value)


def shown(estimator: Any) -> str:
    return str(estimator).replace("\n", "")


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=shown)
def test_what_one_member_has_trained_predicts_the_same_at_another(estimator: Any) -> None:
    one, other = prepared(estimator), prepared(estimator)
    one.fit(X, target(one))
    quorate.sklearn.load(other, quorate.sklearn.weights(one))
    assert np.array_equal(one.predict(X), other.predict(X))
    assert one.score(X, target(one)) == other.score(X, target(one)) > 0.8
    quorate.sklearn.load(other, through_a_job(one))
    assert np.mean(one.predict(X) == other.predict(X)) > 0.98 or np.allclose(
        one.predict(X), other.predict(X), atol=1e-4
    )


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=shown)
def test_a_prepared_estimator_predicts_and_has_the_shapes_of_a_fitted_one(estimator: Any) -> None:
    ready, fitted = prepared(estimator), fresh(estimator).fit(X, target(estimator))
    assert ready.predict(X).shape == (240,)
    shapes = [{name: each.shape for name, each in quorate.sklearn.arrays(one).items()} for one in (ready, fitted)]
    assert shapes[0] == shapes[1]
    assert ready.n_features_in_ == 6 and ready.get_params() == fitted.get_params()
    if is_classifier(estimator):
        assert list(ready.classes_) == list(CLASSES)


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=shown)
def test_two_members_prepare_the_same_model(estimator: Any) -> None:
    one, other = (quorate.sklearn.arrays(prepared(estimator)) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    is_layered = isinstance(estimator, MLPClassifier | MLPRegressor)
    assert any(each.any() for each in one.values()) == is_layered, "all but perceptrons begin with zeros"
    if is_layered:
        another = quorate.sklearn.arrays(prepared(estimator, seed=2))
        assert not np.array_equal(one["coefs_.0"], another["coefs_.0"])
        shape = one["coefs_.0"].shape
        assert np.abs(one["coefs_.0"]).max() <= np.sqrt(6 / sum(shape)), "Glorot's bound"


@pytest.mark.parametrize(
    "estimator", [each for each in CLASSIFIERS + REGRESSORS if getattr(each, "warm_start", False)], ids=shown
)
def test_fit_with_a_warm_start_goes_on_from_what_was_loaded(estimator: Any) -> None:
    taught = prepared(estimator).fit(X, target(estimator))
    goes_on = prepared(estimator)
    quorate.sklearn.load(goes_on, quorate.sklearn.weights(taught))
    goes_on.set_params(max_iter=1)
    goes_on.fit(X, target(estimator))
    anew = prepared(estimator).set_params(max_iter=1, warm_start=False).fit(X, target(estimator))
    assert goes_on.score(X, target(estimator)) > anew.score(X, target(estimator)) + 0.02
    quorate.sklearn.weights(goes_on)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_perceptron_that_got_nowhere_any_more_learns_again_from_another_model(early_stopping: bool) -> None:
    given = {"max_iter": 200, "tol": 0.01, "n_iter_no_change": 2, "learning_rate_init": 0.05, "random_state": 1}
    model = prepared(MLPClassifier((8,), warm_start=True, early_stopping=early_stopping, **given))
    first = quorate.sklearn.arrays(model)
    model.fit(X, LABELS)
    ended = model.n_iter_
    quorate.sklearn.load(model, first)
    assert 1 < model.fit(X, LABELS).n_iter_ <= ended + 2 < 200


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "estimator",
    [
        SGDClassifier(random_state=1),
        Perceptron(random_state=1),
        SGDRegressor(random_state=1),
        MLPClassifier((8,), random_state=1),
        MLPRegressor(hidden_layer_sizes=(8,), random_state=1),
    ],
    ids=shown,
)
def test_partial_fit_goes_on_from_what_was_loaded(estimator: Any, dtype: Any) -> None:
    taught, goes_on = (prepared(estimator, dtype=dtype) for _ in range(2))
    x, y = X.astype(dtype), target(estimator)
    for _ in range(20):
        taught.partial_fit(x, y)
    quorate.sklearn.load(goes_on, quorate.sklearn.weights(taught))
    goes_on.partial_fit(x, y)
    once = prepared(estimator, dtype=dtype).partial_fit(x, y)
    assert goes_on.score(x, y) >= once.score(x, y)
    fitted = quorate.sklearn.arrays(
        fresh(estimator).partial_fit(x, y, **({"classes": CLASSES} if is_classifier(estimator) else {}))
    )
    assert all(each.dtype == fitted[name].dtype for name, each in quorate.sklearn.weights(goes_on).items())
    near, far = (
        max(np.abs(each[name] - array).max() for name, array in quorate.sklearn.weights(taught).items())
        for each in map(quorate.sklearn.weights, (goes_on, once))
    )
    assert near < far


def test_a_member_without_a_class_trains_with_partial_fit() -> None:
    rows = LABELS != "eel"
    member = prepared(SGDClassifier(random_state=1)).partial_fit(X[rows], LABELS[rows])
    assert quorate.sklearn.weights(member)["coef_"].shape == (3, 6)


@pytest.mark.parametrize("estimator", [LogisticRegression(), LinearSVC(), SGDClassifier()], ids=shown)
def test_a_fit_that_has_forgotten_a_class_is_not_submitted(estimator: Any) -> None:
    member, rows = prepared(estimator), LABELS != "eel"
    member.fit(X[rows], LABELS[rows])
    refused("WRONG_CLASSES", "cat, dog", quorate.sklearn.weights, member)


def test_as_many_other_classes_do_not_pass_for_those_of_the_job() -> None:
    member = prepared(LogisticRegression())
    member.fit(X, np.where(LABELS == "eel", "ape", LABELS))
    assert member.coef_.shape == (3, 6)
    refused("WRONG_CLASSES", "ape", quorate.sklearn.weights, member)


def test_two_classes_are_one_row() -> None:
    member = quorate.sklearn.prepare(LogisticRegression(), 6, ["yes", "no"])
    assert quorate.sklearn.arrays(member)["coef_"].shape == (1, 6)
    assert list(member.classes_) == ["no", "yes"], "in the order of scikit-learn, whatever the order given"


def test_arrays_are_copies() -> None:
    member = prepared(SGDClassifier(random_state=1))
    before = quorate.sklearn.weights(member)
    member.partial_fit(X, LABELS)
    assert not before["coef_"].any()


def test_whatever_does_not_fit_is_named_and_the_estimator_stays_as_it_was() -> None:
    member = prepared(MLPClassifier((8,), random_state=1))
    before = quorate.sklearn.arrays(member)
    ones = {name: array + 1 for name, array in before.items()}
    refused("UNKNOWN_TENSOR", "coef_", quorate.sklearn.load, member, ones | {"coef_": np.zeros(1)})
    refused("WRONG_SHAPE", "coefs_.1", quorate.sklearn.load, member, ones | {"coefs_.1": np.zeros((3, 8))})
    del ones["intercepts_.1"]
    refused("MISSING_TENSOR", "intercepts_.1", quorate.sklearn.load, member, ones)
    after = quorate.sklearn.arrays(member)
    assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_estimators_without_weights_to_average_are_refused_with_those_that_have_some() -> None:
    for wrong in (RandomForestClassifier(), LogisticRegressionCV(), make_pipeline(SGDClassifier()), object(), None):
        refused("UNKNOWN_ESTIMATOR", "LinearRegression, LinearSVC, LogisticRegression", quorate.sklearn.arrays, wrong)
    refused("BAD_MODEL", "average", quorate.sklearn.prepare, SGDClassifier(average=True), 6, CLASSES)


def test_an_own_subclass_is_what_it_derives_from() -> None:
    class Mine(Ridge):
        pass

    assert quorate.sklearn.prepare(Mine(), 6).coef_.shape == (6,)


def test_what_cannot_be_prepared_is_said() -> None:
    refused("NOT_PREPARED", "prepare", quorate.sklearn.arrays, SGDClassifier())
    refused("NO_CLASSES", "classes", quorate.sklearn.prepare, SGDClassifier(), 6)
    refused("NO_CLASSES", "classes", quorate.sklearn.prepare, SGDClassifier(), 6, [1, 1])
    refused("BAD_MODEL", "classes", quorate.sklearn.prepare, Ridge(), 6, [0, 1])
    refused("BAD_MODEL", "features", quorate.sklearn.prepare, Ridge(), 0)


def test_an_app_trains_from_the_rounds_model_and_the_same_way_twice() -> None:
    def train(estimator: Any, part: Any, config: Mapping[str, Any]) -> Any:
        for _ in range(config["epochs"]):
            estimator.partial_fit(part.x, part.y)
        return len(part), {}

    def evaluate(estimator: Any, part: Any) -> Any:
        return len(part), {"accuracy": estimator.score(part.x, part.y)}

    app = quorate.sklearn.SklearnApp(
        lambda: quorate.sklearn.prepare(SGDClassifier(), 6, CLASSES),
        lambda: ((X[40:], LABELS[40:]), (X[:40], LABELS[:40])),
        train,
        evaluate,
    )
    drafted = draft_job("job", app.model(), **RULES)
    held = holdings(app, 2, Partition())
    first, again, other = (
        app.train(app.model(), held.parts[0], {"epochs": 3}, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first[0]["coef_"], again[0]["coef_"]) and not np.array_equal(
        first[0]["coef_"], other[0]["coef_"]
    )
    _, given = answered_group(drafted.rules, first[0])
    assert first[1] == 100 and app.evaluate(given, held.held_out)[1]["accuracy"] > 0.8
