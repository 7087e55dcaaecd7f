"""Apps of Flower, unchanged, in every version that docs/flower.md names. What they do is told by `inside`, which runs
once in each environment."""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.flower.versions import ROOT, VERSIONS, ended, python_of, started

pytestmark = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flower")


@pytest.fixture
def told(version: str, places: Path) -> dict[str, Any]:
    python_of(version)
    return _told(version, places)


@cache
def _told(version: str, places: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        ended(started(version, "-m", "tests.flower.inside", places / version, cwd=places))
    )
    assert found["version"].startswith(version)
    return found


def test_a_job_begins_with_what_a_server_app_sends_first(told: dict[str, Any]) -> None:
    digits, changed = told["drafts"]["digits"], told["drafts"]["changed"]
    assert digits["shapes"] == {"coef": ["<f8", [10, 64]], "intercept": ["<f8", [10]]}
    assert digits["roles"] == {"frozen": [], "local": []}
    assert (digits["config"], digits["rounds"]) == ({"lr": 0.03}, 3)
    assert (changed["config"], changed["rounds"]) == ({"lr": 0.25}, 5)


def test_a_strategy_is_asked_until_it_has_the_nodes_that_it_wants_and_its_own_config_counts(
    told: dict[str, Any],
) -> None:
    modded = told["drafts"]["modded"]
    assert modded["config"] == {"pull": 0.5, "proximal-mu": 0.25}
    assert (modded["rounds"], modded["first"]["layer.weight"]) == (7, 100.0)


def test_a_counter_of_a_state_dict_is_local_and_a_table_frozen(told: dict[str, Any]) -> None:
    assert told["drafts"]["modded"]["roles"] == {"frozen": [], "local": ["norm.num_batches_tracked"]}
    assert told["drafts"]["lists"]["roles"] == {"frozen": ["3"], "local": ["2"]}


def test_a_strategy_of_lists_tells_its_config_of_every_round(told: dict[str, Any]) -> None:
    lists = told["drafts"]["lists"]
    assert lists["config"] == {"lr": {"1": 0.5, "3": 0.1}, "epochs": 3, "optimizer": "sgd"}
    assert list(lists["shapes"]) == ["0", "1", "2", "3"]


def test_what_a_job_names_is_the_digest_of_the_apps_module(told: dict[str, Any]) -> None:
    source = ROOT / "examples" / "flower" / "digits_app" / "client_app.py"
    assert told["digests"]["digits"] == sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize("app", ["lists", "client_fn", "object"])
def test_a_client_of_lists_learns_and_gets_all_arrays_back_each_round(told: dict[str, Any], app: str) -> None:
    rounds = told["rounds"][app]
    assert [each["names"] for each in rounds] == [["0", "1"]] * 3, "local and frozen ones are not submitted"
    for number, each in enumerate(rounds):
        for metrics in (*each["metrics"], *each["measured"]):
            assert metrics["batches"] == number, "the counter is the client's own, and outlives its process"
        assert {metrics["round"] for metrics in each["metrics"]} == {number + 1}
        assert all("name" not in metrics for metrics in each["metrics"]), "text is no metric"
    accuracies = [each["measured"][0]["accuracy"] for each in rounds]
    assert accuracies[0] < 0.2 < 0.7 < accuracies[1] < accuracies[2]
    assert rounds[0]["measured"][0]["loss"] == 1 - accuracies[0]


def test_clients_have_the_partitions_of_their_node_configs(told: dict[str, Any]) -> None:
    assert told["rounds"]["lists"][0]["examples"] == [450, 449, 449, 449]
    assert told["rounds"]["object"][0]["examples"] == [450] * 4, "this client was made with data of its own"


def test_an_app_of_messages_learns(told: dict[str, Any]) -> None:
    measured = [each["measured"][0] for each in told["rounds"]["digits"]]
    assert measured[0]["eval_acc"] < 0.2 < 0.85 < measured[2]["eval_acc"]
    assert measured[0]["eval_loss"] > measured[1]["eval_loss"] > measured[2]["eval_loss"]
    assert "num-examples" not in measured[0]


def test_mods_and_lifespans_run_and_state_outlives_the_process(told: dict[str, Any]) -> None:
    rounds = told["rounds"]["modded"]
    calls = [[metrics["calls"] for metrics in each["metrics"]] for each in rounds]
    assert calls == [[2.0] * 4, [4.0] * 4, [6.0] * 4], "each client was asked twice a round"
    began = [metrics["began"] for each in rounds for metrics in each["metrics"]]
    assert began == sorted(set(began)) and all(spans % 2 == 1 for spans in began)
    assert [round(each["measured"][0]["mean"], 4) for each in rounds] == [100.0, 50.75, 26.125]


def test_a_local_tensor_of_floats_begins_as_in_the_apps_model_and_stays_with_its_client(told: dict[str, Any]) -> None:
    assert told["heads"] == [100.0, 51.5]


FAULTS = {
    "raises": ("APP_FAILED", "faulty.py, line"),
    "no_tuple": ("BAD_APP", "TypeError"),
    "tensors_as_array": ("BAD_APP", "did not return a tuple"),
    "too_few": ("BAD_APP", "a list of 1, and the model has 2"),
    "wrong_shape": ("WRONG_SHAPE", "(3, 2), and was given (2, 3)"),
    "text_for_numbers": ("BAD_APP", "the type <U1"),
    "objects": ("BAD_APP", "allow_pickle=False"),
    "changes_frozen": ("FROZEN_TENSOR", "changes 1"),
    "ill": ("APP_FAILED", "status 3: I am ill today"),
    "nothing": ("BAD_APP", "returned nothing"),
    "no_arrays": ("BAD_APP", "0 ArrayRecords"),
    "no_metrics": ("BAD_APP", "0 MetricRecords"),
    "no_examples": ("BAD_APP", 'no "num-examples"'),
    "half_examples": ("BAD_APP", "0.5 examples"),
    "other_names": ("BAD_APP", "returned else"),
    "untrained": ("BAD_APP", "No train function"),
    "no_loss": ("BAD_APP", "did not return a tuple"),
    "unevaluated": ("APP_FAILED", "status 4"),
    "a_cell": ("APP_FAILED", "<ipython-input-1>, line 3"),
    "damaged": ("BAD_STATE", "flower.state is damaged"),
    "not_an_app": ("BAD_APP", "type ndarray"),
    "a_class": ("BAD_APP", "a class"),
    "two_arguments": ("BAD_APP", "does not call"),
    "no_object": ("UNKNOWN_APP", "there_is_none"),
    "no_module": ("UNKNOWN_APP", "there_is_none"),
    "no_key": ("UNKNOWN_KEY", "learning-rat"),
    "no_pairs": ("BAD_CONFIG", "pairs"),
    "no_quotes": ("BAD_CONFIG", "learning-rate=high"),
    "no_server": ("NO_MODEL", "untrained"),
    "silent_server": ("NO_MODEL", "before it trained"),
    "asking_server": ("NO_MODEL", "without answers"),
    "failing_server": ("APP_FAILED", "no disk"),
    "other_records": ("BAD_APP", "the records model"),
}


def test_whatever_an_app_does_wrong_is_told_with_a_next_step(told: dict[str, Any]) -> None:
    found = told["faults"]
    assert found.keys() == FAULTS.keys()
    for name, (code, part) in FAULTS.items():
        assert found[name]["code"] == code and part in found[name]["what"] and found[name]["todo"], found[name]
        assert len(found[name]["what"]) < 600, "no traceback"
