"""Runs in an environment with Flower, and prints as JSON what its apps do as apps of Quorate. Without a network: rounds
are played by averaging what clients return.

    .venv-flower-1.41/bin/python -m tests.flower.inside DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fl.client.adapters.flower import draft, load
from fl.client.apps import load_app
from fl.client.errors import QuorateError
from fl.client.jobdraft import config_value, draft_job
from fl.client.setting import Setting
from fl.jobrules import config_at
from fl.records import JobRules

ROOT = Path(__file__).resolve().parent.parent.parent
APPS = ROOT / "tests" / "flower" / "apps"
PLACES = (APPS / "lists", APPS / "modded", APPS / "loose", ROOT / "examples" / "flower")
CLIENTS = 4


def rules_of(arrays: Mapping[str, Any], roles: Mapping[str, Any], config: Mapping[str, Any], rounds: int) -> JobRules:
    made = draft_job(
        "flower", arrays, rounds=rounds, target=CLIENTS, privacy="visible-to-validators", config=config, **roles
    )
    return made.rules


def setting(rules: JobRules, round: int, client: int, directory: Path | None) -> Setting:
    config = {name: config_value(entry) for name, entry in config_at(rules, round).items()}
    account = bytes([client]) * 32
    return Setting(bytes(32), account, rules, round, config, None if directory is None else directory / str(client))


def played(reference: str, directory: Path) -> list[dict[str, Any]]:
    """Three rounds; in each of them every client starts anew, as after a restart."""
    arrays, roles, config, _ = draft(reference)
    rules = rules_of(arrays, roles, config, 3)
    model = {name: array for name, array in arrays.items() if name not in roles["local"]}
    model = {name: array if name in roles["frozen"] else np.asarray(array, np.float32) for name, array in model.items()}
    told = []
    for round in range(1, 4):
        answers, measured = [], []
        for client in range(CLIENTS):
            acting = load(reference)
            at = acting.at(setting(rules, round, client, directory))
            part = acting.parts(CLIENTS, np.random.default_rng(0))[client]
            measured.append(at.evaluate(model, part))
            answers.append(at.train(model, part, at_config(rules, round), np.random.default_rng(0)))
        weights = [answer[1] for answer in answers]
        for name in answers[0][0]:
            model[name] = np.average([answer[0][name] for answer in answers], axis=0, weights=weights).astype(
                np.float32
            )
        told.append(
            {
                "names": sorted(answers[0][0]),
                "examples": [answer[1] for answer in answers],
                "metrics": [dict(answer[2]) for answer in answers],
                "measured": [dict(metrics) for _, metrics in measured],
            }
        )
    return told


def at_config(rules: JobRules, round: int) -> dict[str, Any]:
    return {name: config_value(entry) for name, entry in config_at(rules, round).items()}


def drafted(reference: str, run_config: str | None = None, server: str = "") -> dict[str, Any]:
    arrays, roles, config, rounds = draft(reference, run_config, server)
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    first = {name: float(array.ravel()[0]) for name, array in arrays.items()}
    return {"shapes": shapes, "first": first, "roles": roles, "config": dict(config), "rounds": rounds}


def refused(act: Callable[[], object]) -> dict[str, str]:
    try:
        act()
    except QuorateError as error:
        return {"code": error.code, "what": error.what, "todo": error.todo}
    return {"code": "", "what": "", "todo": ""}


LIST = {"0": np.zeros((2, 3), np.float32), "1": np.arange(2)}
NAMED = {"w": np.zeros(3, np.float32)}


def fault(app: Any, model: Mapping[str, Any], act: str = "train", directory: Path | None = None) -> dict[str, str]:
    """What is raised where this app, or the one of this name in `faulty`, is given a round."""
    rules = rules_of(model, {"frozen": ["1"] if "1" in model else []}, {}, 1)
    at = load(f"faulty:{app}" if isinstance(app, str) else app).at(setting(rules, 1, 0, directory))
    if act == "evaluate":
        return refused(lambda: at.evaluate(model, {}))
    return refused(lambda: at.train(model, {}, {}, np.random.default_rng(0)))


def of_a_cell() -> Any:
    """A client that was written in a notebook, and fails in one of its lines."""
    names: dict[str, Any] = {}
    cell = "from flwr.client import NumPyClient\nclass Cell(NumPyClient):\n def fit(self, parameters, config): 1 / 0"
    exec(compile(cell, "<ipython-input-1>", "exec"), names)
    return names["Cell"]()


def damaged(directory: Path) -> dict[str, str]:
    (directory / "0").mkdir(parents=True)
    (directory / "0" / "flower.state").write_bytes(b"\x93garbage")
    return fault("raises", LIST, directory=directory)


def heads(directory: Path) -> list[float]:
    """Of a job that leaves floats to its clients: what they begin with, and what a client makes of that, kept over a
    restart."""
    arrays, roles, config, _ = draft("modded_app:app")
    arrays["body"] = np.zeros(2)
    rules = rules_of(arrays, {"local": [*roles["local"], "layer.weight"]}, config, 1)
    found, model = [], {"body": np.zeros(2, np.float32)}
    for _ in range(2):
        at = load("modded_app:app", node_config="partition-id=3").at(setting(rules, 1, 9, directory))
        found.append(at.evaluate(model, {})[1]["mean"])
        at.train(model, {}, at_config(rules, 1), np.random.default_rng(0))
    return found


LIST_FAULTS = (
    *("raises", "no_tuple", "tensors_as_array", "too_few", "wrong_shape", "text_for_numbers", "objects"),
    *("changes_frozen", "ill"),
)
NAMED_FAULTS = ("nothing", "no_arrays", "no_metrics", "no_examples", "half_examples", "other_names", "untrained")


def main(directory: Path) -> dict[str, Any]:
    sys.path[:0] = [str(each) for each in PLACES]
    apps = {
        "lists": "lists_app.client_app:app",
        "object": "lists_app.client_app:client",
        "client_fn": "lists_app.client_app:client_fn",
        "modded": "modded_app:app",
        "digits": "digits_app.client_app:app",
    }
    return {
        "version": version("flwr"),
        "digests": {name: load_app(f"flower:{app}", Path.cwd()).digest.hex() for name, app in apps.items()},
        "drafts": {
            **{name: drafted(app) for name, app in apps.items()},
            "changed": drafted(apps["digits"], "learning-rate=0.25 num-server-rounds=5"),
        },
        "rounds": {name: played(app, directory / name) for name, app in apps.items()},
        "heads": heads(directory / "heads"),
        "faults": {
            **{name: fault(name, LIST) for name in LIST_FAULTS},
            **{name: fault(name, NAMED) for name in NAMED_FAULTS},
            "no_loss": fault("no_loss", LIST, "evaluate"),
            "unevaluated": fault("ill", LIST, "evaluate"),
            "a_cell": fault(of_a_cell(), LIST),
            "damaged": damaged(directory / "damaged"),
            "not_an_app": refused(lambda: load("faulty:not_an_app")),
            "a_class": refused(lambda: load("faulty:a_class")),
            "two_arguments": refused(lambda: load("faulty:two_arguments")),
            "no_object": refused(lambda: load("faulty:there_is_none")),
            "no_module": refused(lambda: load("there_is_none:app")),
            "no_key": refused(lambda: load(apps["digits"], "learning-rat=1")),
            "no_pairs": refused(lambda: load(apps["digits"], "learning-rate 1")),
            "no_quotes": refused(lambda: load(apps["digits"], "learning-rate=high")),
            "no_server": refused(lambda: draft("faulty:untrained")),
            "silent_server": refused(lambda: draft("faulty:untrained", server="faulty:silent_server")),
            "asking_server": refused(lambda: draft("faulty:untrained", server="faulty:asking_server")),
            "failing_server": refused(lambda: draft("faulty:untrained", server="faulty:failing_server")),
            "other_records": refused(lambda: draft("faulty:untrained", server="faulty:other_records_server")),
        },
    }


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        told = main(Path(sys.argv[1]))
    print(json.dumps(told))
