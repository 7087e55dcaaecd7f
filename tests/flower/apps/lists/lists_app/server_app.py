"""Never run by Quorate: it is asked for the initial parameters, the config of each round, and their number."""

from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from lists_app.task import initial


def fit_config(server_round: int):
    return {"server_round": server_round, "lr": 0.5 if server_round < 3 else 0.1, "epochs": 3, "optimizer": "sgd"}


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(initial_parameters=ndarrays_to_parameters(initial()), on_fit_config_fn=fit_config)
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
