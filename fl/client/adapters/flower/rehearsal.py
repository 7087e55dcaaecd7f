"""Runs a ServerApp until it sends its first train messages, and stops it there.

It gets a Grid of ours, whose nodes are made up: as many as it waits for. Messages of other kinds go unanswered.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from fl.client.adapters.flower.messages import SUPERLINK, TRAIN, message
from fl.client.adapters.flower.reference import Project
from fl.client.appguard import blamed
from fl.client.errors import BadInput

_RUN = 1
_FIRST_NODE = 2
_FEWEST_NODES, _MOST_NODES = 128, 1 << 16
_MOST_QUESTIONS = 1000
"""Of a ServerApp, after which nothing will come of it."""


class _Enough(BaseException):
    """Not to be caught by an app that goes on after any Exception."""


def rehearsed(server_app: Any, name: str, project: Project, settings: Mapping[str, Any]) -> tuple[Any | None, int]:
    """The first train message, if there was one, and the rounds that the strategy was to run: 0 if it does not say."""
    from flwr.serverapp import Grid

    Grid.register(Rehearsal)
    grid = Rehearsal()
    with blamed(name, project.root), _identified(), contextlib.suppress(_Enough):
        server_app(grid, server_context(settings))
    if grid.first is None and grid.questions > _MOST_QUESTIONS:
        raise BadInput(
            "NO_MODEL",
            f"The ServerApp {name} trains nothing without answers to its own messages.",
            "Give the job a model from a file.",
        )
    return grid.first, grid.rounds


def server_context(settings: Mapping[str, Any]) -> Any:
    from flwr.app import Context, RecordDict

    return Context(run_id=_RUN, node_id=SUPERLINK, node_config={}, state=RecordDict(), run_config=dict(settings))


class Rehearsal:
    """A Grid."""

    def __init__(self) -> None:
        self.first: Any | None = None
        self.rounds = 0
        self.questions = 0
        self._nodes = _FEWEST_NODES

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=_RUN)

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        return message(message_type, content, 0, _RUN, dst_node_id)

    def get_node_ids(self) -> list[int]:
        self._count()
        found = list(range(_FIRST_NODE, _FIRST_NODE + self._nodes))
        # Whoever asks again waits for more.
        self._nodes = min(2 * self._nodes, _MOST_NODES)
        return found

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=each) for each in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        return [each.metadata.message_id for each in self._seen(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        self._count()
        return []

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        self._seen(messages)
        return []

    def _seen(self, messages: Iterable[Any]) -> list[Any]:
        self._count()
        found = list(messages)
        for each in found:
            if each.metadata.message_type.partition(".")[0] == TRAIN:
                self.first, self.rounds = each, _rounds_of_strategy()
                raise _Enough
        return found

    def _count(self) -> None:
        self.questions += 1
        if self.questions > _MOST_QUESTIONS:
            raise _Enough


def _rounds_of_strategy() -> int:
    """`num_rounds` of the Strategy.start() that is sending, which no message tells."""
    frame = inspect.currentframe()
    while frame is not None:
        rounds = frame.f_locals.get("num_rounds") if frame.f_code.co_name == "start" else None
        if isinstance(rounds, int):
            return rounds
        frame = frame.f_back
    return 0


class Manager:
    """A ClientManager of clients that are made up, for strategies that choose among them."""

    def num_available(self) -> int:
        return _FEWEST_NODES

    def all(self) -> dict[str, Any]:
        return {each.cid: each for each in self.sample(_FEWEST_NODES)}

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        return True

    def sample(self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None) -> list[Any]:
        count = min(max(num_clients, 1), _MOST_NODES)
        return [SimpleNamespace(cid=str(each), node_id=each, properties={}) for each in range(count)]


@contextlib.contextmanager
def _identified() -> Iterator[None]:
    """From 1.39 on, a ServerApp's messages are from the task that the process is for."""
    try:
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        yield
        return
    before = {name: getattr(identity, name) for name in ("_task_id", "_run_id", "_node_id")}
    identity.task_id, identity.run_id, identity.node_id = 1, _RUN, SUPERLINK
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(identity, name, value)
