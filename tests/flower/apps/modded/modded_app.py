"""A Flower app with a mod, a lifespan, and something to remember."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedProx

spans: list[str] = []


def counting(message: Message, context: Context, call_next) -> Message:
    """Counts what this client was ever asked, wherever it runs."""
    seen = context.state.get("seen", MetricRecord({"calls": 0}))
    context.state["seen"] = MetricRecord({"calls": seen["calls"] + 1})
    reply = call_next(message, context)
    for record in reply.content.metric_records.values():
        record["calls"] = context.state["seen"]["calls"]
    return reply


app = ClientApp(mods=[counting])


@app.lifespan()
def lifespan(context: Context):
    spans.append("begins")
    yield
    spans.append("ends")


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Each client draws the model towards its own number, which it has noted in the first round."""
    config, arrays = msg.content["config"], msg.content["arrays"]
    if "own" not in context.state:
        number = float(context.node_config["partition-id"])
        context.state["own"] = ArrayRecord({"goal": Array(np.full(4, number))})
        context.state["note"] = ConfigRecord({"text": "noted", "bytes": b"\x00\xff", "flag": True, "numbers": [1, 2]})
    assert dict(context.state.get("note")) == {"text": "noted", "bytes": b"\x00\xff", "flag": True, "numbers": [1, 2]}
    assert type(config["proximal-mu"]) is float
    weights = arrays["layer.weight"].numpy()
    weights += config["pull"] * (context.state["own"]["goal"].numpy() - weights)
    trained = {"layer.weight": Array(weights), "norm.num_batches_tracked": arrays["norm.num_batches_tracked"]}
    metrics = MetricRecord({"num-examples": 5, "round": config["server-round"], "began": len(spans)})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    weights = msg.content["arrays"]["layer.weight"].numpy()
    metrics = MetricRecord({"num-examples": 5, "mean": float(weights.mean())})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    print("this is no part of what draft() tells")
    arrays = {"layer.weight": Array(np.full(4, 100.0)), "norm.num_batches_tracked": Array(np.array(0))}
    FedProx(min_available_nodes=300, proximal_mu=0.25).start(
        grid=grid,
        initial_arrays=ArrayRecord(arrays),
        train_config=ConfigRecord({"pull": 0.5}),
        num_rounds=7,
    )
