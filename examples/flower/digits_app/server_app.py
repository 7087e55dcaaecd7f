"""digits-app: a Flower ServerApp."""

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import get_arrays, make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Main entry point for the ServerApp."""
    learning_rate = context.run_config["learning-rate"]
    strategy = FedAvg(fraction_evaluate=context.run_config["fraction-evaluate"])
    strategy.start(
        grid=grid,
        initial_arrays=get_arrays(make_model(learning_rate)),
        train_config=ConfigRecord({"lr": learning_rate}),
        num_rounds=context.run_config["num-server-rounds"],
    )
