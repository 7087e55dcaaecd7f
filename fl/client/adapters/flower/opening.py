"""What a job begins with, asked of an app of Flower's: its initial model, its train config, its number of rounds.

An app's ServerApp has all of them, and no other use here: the chain does its work. So it is run until it sends its
first train messages (`rehearsal`), and no further. In the dialect of lists its strategy is asked instead, and a client
for its parameters where the strategy has none, as Flower does it.

Roles. A list of Flower's has every entry of a state_dict, counters too. Floats are averaged. Of other arrays, single
integers are counters (BatchNorm's num_batches_tracked) and local; whole arrays of integers are tables that training
leaves alone (position_ids) and frozen. A job may say otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fl.client.adapters.flower.messages import (
    ARRAYS,
    CONFIG,
    GET_PARAMETERS,
    ROUND_NAMES,
    TRAIN,
    asking_for_parameters,
    content_of,
    listed,
    message,
    takes_lists,
)
from fl.client.adapters.flower.reference import Overrides, Project, check_flower, client_app, found_at, merged
from fl.client.adapters.flower.rehearsal import Manager, rehearsed, server_context
from fl.client.appguard import blamed
from fl.client.errors import BadInput
from fl.client.jobdraft import Config, ConfigValue
from fl.records import MAX_CONFIG

ROUNDS_NAME = "num-server-rounds"
"""Under which the run config of Flower's templates has the number of rounds."""
USUAL_ROUNDS = 3
"""Flower's own, where an app does not say."""
_MOST_ASKED = 1000
"""Rounds whose config is asked of a strategy: one that changes later is not noticed."""
_NO_INITIAL = "Name its ServerApp in pyproject.toml ([tool.flwr.app.components]), or give the job a model from a file."


class Drafted(NamedTuple):
    """What `create_job` takes."""

    arrays: dict[str, NDArray[Any]]
    roles: dict[str, list[str]]
    config: Config
    rounds: int


@dataclass(frozen=True, slots=True)
class Begun:
    """What was found out. `arrays` are None where nobody tells them, and `rounds` 0."""

    arrays: dict[str, NDArray[Any]] | None = None
    config: Config = field(default_factory=dict)
    rounds: int = 0


def draft(app: Any, run_config: Overrides = None, server: str = "") -> Drafted:
    """What a job of this app begins with: a ClientApp, a NumPyClient or a client_fn, or the name of one. `server` is
    the name of its ServerApp, if its pyproject.toml tells none."""
    check_flower()
    found, project = found_at(app)
    return drafted(client_app(found, project), project, merged(project, run_config), server)


def drafted(client: Any, project: Project, settings: Mapping[str, Any], server: str = "") -> Drafted:
    begun, name = Begun(), server or project.server
    with _quiet():
        if name:
            server_app = _server_app(name)
            if getattr(server_app, "_main", None) is None:
                begun = _of_strategy(server_app, name, project, settings)
            else:
                begun = _of_messages(server_app, name, project, settings)
        arrays = begun.arrays
        if arrays is None and takes_lists(client):
            arrays = _of_client(client, project, settings)
    if not arrays:
        raise BadInput("NO_MODEL", f"Nothing tells what model {project.name} begins with.", _NO_INITIAL)
    rounds = begun.rounds or settings.get(ROUNDS_NAME)
    told = isinstance(rounds, int) and rounds > 0
    return Drafted(arrays, roles(arrays), begun.config, int(rounds) if rounds and told else USUAL_ROUNDS)


def roles(arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
    """Of the arrays that are no floats; all others are averaged."""
    whole = {name: array for name, array in arrays.items() if array.dtype.kind != "f"}
    return {
        "frozen": [name for name, array in whole.items() if array.ndim > 0],
        "local": [name for name, array in whole.items() if array.ndim == 0],
    }


def numbered(arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Names for arrays that Flower has in a list."""
    return {str(place): array for place, array in enumerate(arrays)}


# The sources


def _server_app(name: str) -> Any:
    from flwr.serverapp import ServerApp

    found, _ = found_at(name)
    if not isinstance(found, ServerApp):
        raise BadInput("BAD_APP", f"{name} is no ServerApp.", "Name one, as in package.server_app:app.")
    return found


def _of_messages(server_app: Any, name: str, project: Project, settings: Mapping[str, Any]) -> Begun:
    first, rounds = rehearsed(server_app, name, project, settings)
    if first is None:
        raise BadInput("NO_MODEL", f"The ServerApp {name} has ended before it trained anything.", _NO_INITIAL)
    if (kind := first.metadata.message_type) != TRAIN:
        raise BadInput(
            "BAD_APP", f"The ServerApp {name} sends messages of the type {kind}.", "Clients are sent 'train' alone."
        )
    content = first.content
    if "fitins.parameters" in content:
        arrays = numbered(listed(content["fitins.parameters"], name))
        return Begun(arrays, _config(content["fitins.config"], 1), rounds)
    if list(content.array_records) != [ARRAYS] or not set(content.config_records) <= {CONFIG}:
        raise BadInput(
            "BAD_APP",
            f"The ServerApp {name} sends the records {', '.join(content)}.",
            f"Clients get their arrays as '{ARRAYS}' and their config as '{CONFIG}'.",
        )
    arrays = {key: array.numpy() for key, array in content[ARRAYS].items()}
    return Begun(arrays, _config(content.config_records.get(CONFIG, {}), 1), rounds)


def _of_strategy(server_app: Any, name: str, project: Project, settings: Mapping[str, Any]) -> Begun:
    with blamed(name, project.root):
        make = getattr(server_app, "_server_fn", None)
        parts = make(server_context(settings)) if make is not None else None
        config = parts.config if parts is not None else server_app._config
        strategy = parts.strategy if parts is not None else server_app._strategy
        rounds = int(config.num_rounds) if config is not None else 0
        if strategy is None:
            return Begun(rounds=rounds)
        manager = Manager()
        parameters = strategy.initialize_parameters(manager)
        given = [each.numpy() for each in _arrays_of(parameters)] if parameters is not None else None
        schedule = []
        for number in range(1, min(rounds, _MOST_ASKED) + 1):
            asked = strategy.configure_fit(number, parameters, manager)
            schedule.append(_config(asked[0][1].config, number) if asked else {})
    return Begun(numbered(given) if given is not None else None, _scheduled(schedule), rounds)


def _arrays_of(parameters: Any) -> list[Any]:
    from flwr.app import Array

    return [Array("", (), parameters.tensor_type, tensor) for tensor in parameters.tensors]


def _of_client(client: Any, project: Project, settings: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """What a client of its own says, if it says anything."""
    from flwr.app import Context, RecordDict
    from flwr.common import Code

    alone = {"partition-id": 0, "num-partitions": 1}
    context = Context(run_id=1, node_id=0, node_config=alone, state=RecordDict(), run_config=dict(settings))
    with blamed(project.name, project.root):
        reply = client(message(GET_PARAMETERS, asking_for_parameters(), 0, 1, 0), context)
        status = reply.content["getparametersres.status"]["code"] if reply.has_content() else 0
        if status == Code.GET_PARAMETERS_NOT_IMPLEMENTED.value:
            return None
        return numbered(listed(content_of(reply, project.name)["getparametersres.parameters"], project.name))


# Configs


def _config(given: Mapping[str, Any], round: int) -> dict[str, ConfigValue]:
    """As a job holds it. The round is told to clients in any case."""
    found: dict[str, ConfigValue] = {}
    for name, value in given.items():
        if name in ROUND_NAMES and value == round:
            continue
        if not isinstance(value, int | float | str):
            raise BadInput(
                "BAD_CONFIG",
                f"The train config's {name} is {value!r}, which a job cannot hold.",
                "Put numbers and text into it; the rest into the run config of each site.",
            )
        found[name] = int(value) if isinstance(value, bool) else value
    return found


def _scheduled(by_round: Sequence[Mapping[str, ConfigValue]]) -> Config:
    """One value where it never changes, else the values by the rounds that they hold from."""
    found: dict[str, dict[int, ConfigValue]] = {}
    for number, config in enumerate(by_round, 1):
        for name, value in config.items():
            values = found.setdefault(name, {})
            if not values or list(values.values())[-1] != value:
                values[number] = value
    for name, values in found.items():
        if len(values) > MAX_CONFIG:
            raise BadInput(
                "BAD_CONFIG",
                f"The train config's {name} changes {len(values)} times, and a job holds {MAX_CONFIG} values.",
                f"Let clients compute it from '{ROUND_NAMES[0]}', which they are told.",
            )
    return {name: values[1] if list(values) == [1] else values for name, values in found.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a server tells of a run that nobody runs goes where warnings go, or nowhere."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
