"""The same client as an object, as a client_fn and as a ClientApp."""

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from lists_app.task import accuracy, initial, load_data, train


class DigitsClient(NumPyClient):
    def __init__(self, partition_id: int, num_partitions: int) -> None:
        self.pixels, self.labels = load_data(partition_id, num_partitions)

    def get_parameters(self, config):
        return initial()

    def fit(self, parameters, config):
        assert type(config["lr"]) is float and type(config["epochs"]) is int and type(config["optimizer"]) is str
        weights, bias, batches, table = parameters
        weights, bias = train(weights, bias, self.pixels, self.labels, config["lr"], config["epochs"])
        metrics = {"batches": float(batches), "round": config["server_round"], "lr": config["lr"], "name": "digits"}
        return [weights, bias, batches + 1, table], len(self.labels), metrics

    def evaluate(self, parameters, config):
        weights, bias, batches, _ = parameters
        found = accuracy(weights, bias, self.pixels, self.labels)
        return 1 - found, len(self.labels), {"accuracy": found, "batches": int(batches)}


def client_fn(context: Context):
    assert context.run_config["optimizer.name"] == "sgd"
    return DigitsClient(
        int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    ).to_client()


app = ClientApp(client_fn)
client = DigitsClient(0, 4)
NUMBERS = np.arange(3)
