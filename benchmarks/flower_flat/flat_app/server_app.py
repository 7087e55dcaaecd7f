"""flat-app: a Flower ServerApp with Flower's FedAvg, which says when a round's messages left, reached the apps, were
answered and were averaged."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Told(FedAvg):
    def configure_train(self, *given: Any, **named: Any) -> Iterable[Message]:
        messages: Iterable[Message] = super().configure_train(*given, **named)
        self.sent_s = time.time()
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        answered_s, messages = time.time(), list(replies)
        asked_s = max(each.content["metrics"]["asked-s"] for each in messages)
        found = super().aggregate_train(server_round, messages)
        print(f"flat round {server_round} {self.sent_s} {asked_s} {answered_s} {time.time()}", flush=True)
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    given = context.run_config
    clients = given["clients"]
    strategy = Told(
        fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients, weighted_by_key="num-examples"
    )
    model = ArrayRecord({"w": Array(np.zeros(given["parameters"], np.float32))})
    strategy.start(grid=grid, initial_arrays=model, num_rounds=given["num-server-rounds"])
