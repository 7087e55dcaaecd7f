"""Apps of Flower, unmodified, in this process: no SuperLink, no SuperNode, no ServerApp in the middle.

Enters: a `ClientApp`, a `NumPyClient` or a `client_fn`, as `package.module:object`, and what its pyproject.toml says.
Leaves: an app as `fl.client.apps` has it (`load`), and what a job that starts from its model needs (`draft`).

`reference` finds the app and its configs, `opening` asks it for its initial model, `messages` says how a round becomes
a message of Flower's and back, `memory` keeps what a client wants to have in the next round, and `app` puts them
together; `loop` answers a whole job. flwr, from 1.30 on, is imported when one of these is called, and not before.
"""

from fl.client.adapters.flower.app import FlowerApp, load
from fl.client.adapters.flower.loop import evaluate, train
from fl.client.adapters.flower.opening import Drafted, draft

__all__ = ["Drafted", "FlowerApp", "draft", "evaluate", "load", "train"]
