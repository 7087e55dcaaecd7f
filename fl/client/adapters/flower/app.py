"""A Flower app as an app of Quorate: each round becomes a message to it, and its reply an update.

Which arrays it gets: all of the model's, in the order of the job's schema. Averaged and frozen ones come from the
round's model; local ones are the client's own, from the round before. It returns all of them, and of these

    averaged ones   are submitted
    local ones      are kept here for the next round
    frozen ones     must be what they were: an app that changes them is told so, and nothing is submitted

A local tensor of integers begins with zeros, as counters do; one of floats begins as in the app's initial model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fl.client.adapters.flower.memory import Kept, Memory
from fl.client.adapters.flower.messages import (
    EVALUATE,
    TRAIN,
    asking,
    content_of,
    measured,
    message,
    takes_lists,
    trained,
)
from fl.client.adapters.flower.opening import Drafted, drafted
from fl.client.adapters.flower.reference import (
    Overrides,
    Project,
    Scalar,
    check_flower,
    client_app,
    config_of,
    found_at,
    merged,
    told_apart,
)
from fl.client.appguard import blamed
from fl.client.apps import Measured, Trained
from fl.client.errors import BadInput
from fl.client.jobdraft import Arrays, ConfigValue
from fl.client.setting import Setting
from fl.tensors.layout import AVERAGED, FROZEN, LOCAL, TensorSpec, numpy_dtype

_ID_BYTES = 8
_MOST_BYTES = 64 * 1024 * 1024
"""Of a local tensor that begins with zeros."""


def load(app: Any, run_config: Overrides = None, node_config: Overrides = None) -> FlowerApp:
    """A ClientApp, a NumPyClient or a client_fn: itself, or its name, `package.module:object`. Configs are text, as in
    "lr=0.1 optimizer='sgd'", or mappings; the first goes over that of the app's pyproject.toml."""
    check_flower()
    return FlowerApp(*found_at(app), run_config, node_config)


class FlowerApp:
    """`found` is what of Flower's is to be run, `project` where it comes from."""

    def __init__(
        self,
        found: Any,
        project: Project,
        run_config: Overrides = None,
        node_config: Overrides = None,
    ) -> None:
        self.project = project
        self.client = client_app(found, project)
        self.takes_lists = takes_lists(self.client)
        self.run_config = merged(project, run_config)
        self.node_config = config_of(node_config, "node config")
        self._memories: dict[bytes, Memory] = {}
        self._drafted: Drafted | None = None
        # A node of Flower's runs one message of a run at a time, and so do its apps' files and caches expect it.
        self.busy = threading.Lock()

    # As every app

    def model(self, **settings: Any) -> Arrays:
        """The initial model; settings go over the run config."""
        if settings:
            return drafted(self.client, self.project, merged(self.project, {**self.run_config, **settings})).arrays
        return self.initial()

    def initial(self) -> Arrays:
        """The initial model; the app is asked for it once."""
        if self._drafted is None:
            self._drafted = drafted(self.client, self.project, self.run_config)
        return self._drafted.arrays

    def data(self) -> tuple[None, None]:
        """Flower's clients have their data: nothing is handed to them, and nothing is held out."""
        return None, None

    def parts(self, count: int, chance: np.random.Generator) -> list[dict[str, Scalar]]:
        """Node configs."""
        return [{"partition-id": number, "num-partitions": count} for number in range(count)]

    def at(self, setting: Setting) -> FlowerRound:
        """The app in a round: what trains and evaluates."""
        who = setting.job + setting.account
        if who not in self._memories:
            self._memories[who] = Memory(setting.directory)
        return FlowerRound(self, setting, self._memories[who])

    def train(self, *given: Any) -> NoReturn:
        raise _no_round()

    def evaluate(self, model: Arrays, data: Any) -> Measured:
        if data is None:
            return NOTHING
        raise _no_round()


def _no_round() -> BadInput:
    return BadInput(
        "BAD_APP", "An app of Flower's works in a round of a job.", "Use quorate train, or app.at(setting) first."
    )


NOTHING: Measured = (0, {})
"""What is measured without data: it is the clients who have some."""


class FlowerRound:
    """The app in one round."""

    def __init__(self, app: FlowerApp, setting: Setting, memory: Memory) -> None:
        self._app = app
        self._setting = setting
        self._memory = memory
        self._tensors = setting.rules.schema.tensors
        self._name = app.project.name

    def model(self, **settings: Any) -> Arrays:
        return self._app.model(**settings)

    def data(self) -> tuple[None, None]:
        return self._app.data()

    def train(
        self, model: Arrays, data: Any, config: Mapping[str, ConfigValue], chance: np.random.Generator
    ) -> Trained:
        with self._app.busy:
            kept = self._memory.read()
            given = self._given(model, kept)
            content, state = self._asked(TRAIN, given, config, data, kept)
            with blamed(self._name, self._app.project.root):
                found = trained(content, self._app.takes_lists, list(given), self._name)
            for tensor in self._tensors:
                self._check(tensor, given[tensor.name], found.arrays.get(tensor.name))
            local = {**kept.local, **self._of_role(LOCAL, found.arrays)}
            self._memory.write(Kept(state, local))
        return self._of_role(AVERAGED, found.arrays), found.examples, found.metrics

    def evaluate(self, model: Arrays, data: Any) -> Measured:
        if data is None:
            return NOTHING
        with self._app.busy:
            kept = self._memory.read()
            content, state = self._asked(EVALUATE, self._given(model, kept), self._setting.config, data, kept)
            self._memory.write(Kept(state, kept.local))
        with blamed(self._name, self._app.project.root):
            return measured(content, self._app.takes_lists, self._name)

    def _asked(
        self,
        kind: str,
        arrays: dict[str, NDArray[Any]],
        config: Mapping[str, ConfigValue],
        data: Any,
        kept: Kept,
    ) -> tuple[Any, Any]:
        """What the app answers, and its state after that."""
        from flwr.app import Context

        app, setting = self._app, self._setting
        run, node = (int.from_bytes(each[:_ID_BYTES]) for each in (setting.job, setting.account))
        context = Context(
            run_id=run,
            node_id=node,
            node_config={**(data or {}), **app.node_config},
            state=kept.state,
            run_config=dict(app.run_config),
        )
        with blamed(self._name, app.project.root):
            content = asking(kind, app.takes_lists, arrays, config, setting.round)
            with told_apart(self._name):
                reply = app.client(message(kind, content, setting.round, run, node), context)
            return content_of(reply, self._name), context.state

    def _given(self, model: Arrays, kept: Kept) -> dict[str, NDArray[Any]]:
        given = {}
        for place, tensor in enumerate(self._tensors):
            if tensor.role != LOCAL:
                given[tensor.name] = model[tensor.name]
            elif tensor.name in kept.local:
                given[tensor.name] = kept.local[tensor.name]
            else:
                given[tensor.name] = self._first(place, tensor)
        return given

    def _first(self, place: int, tensor: TensorSpec) -> NDArray[Any]:
        """What a local tensor begins with."""
        kind = numpy_dtype(tensor.dtype)
        if kind.kind != "f":
            if (size := prod(tensor.shape) * kind.itemsize) > _MOST_BYTES:
                raise BadInput(
                    "LOCAL_TOO_LARGE",
                    f"The job leaves {tensor.name} to trainers: {size} bytes, and {_MOST_BYTES} are made here.",
                    "Do not train in it: a creator may write any shape.",
                )
            return np.zeros(tensor.shape, kind)
        initial = self._app.initial()
        numbered = dict(enumerate(initial.values()))
        found = numbered.get(place) if self._app.takes_lists else initial.get(tensor.name)
        if found is None or found.shape != tensor.shape:
            raise BadInput(
                "BAD_APP",
                f"The job leaves {tensor.name} to its clients, and {self._name} begins with no such array.",
                "Train with the app that the job was made for.",
            )
        return np.asarray(found, kind)

    def _check(self, tensor: TensorSpec, given: NDArray[Any], returned: NDArray[Any] | None) -> None:
        if returned is None:
            return
        if returned.shape != tensor.shape:
            raise BadInput(
                "WRONG_SHAPE",
                f"The app {self._name} has returned {tensor.name} in the shape {returned.shape}, and was given "
                f"{tensor.shape}.",
                "Return the arrays as they came, with other values.",
            )
        if tensor.role == FROZEN and returned.astype(given.dtype).tobytes() != given.tobytes():
            raise BadInput(
                "FROZEN_TENSOR",
                f"The app {self._name} changes {tensor.name}, which is frozen in this job.",
                "Make it local where the job is created, or leave it alone in training.",
            )

    def _of_role(self, role: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {each.name: arrays[each.name] for each in self._tensors if each.role == role and each.name in arrays}
