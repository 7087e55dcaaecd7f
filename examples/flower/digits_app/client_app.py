"""digits-app: a Flower ClientApp."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import get_arrays, load_data, make_model, set_arrays, test

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = make_model(msg.content["config"]["lr"])
    set_arrays(model, msg.content["arrays"])
    pixels, _, labels, _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    for _ in range(context.run_config["local-epochs"]):
        model.partial_fit(pixels, labels)
    loss, _ = test(model, pixels, labels)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(labels)})
    return Message(content=RecordDict({"arrays": get_arrays(model), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = make_model(context.run_config["learning-rate"])
    set_arrays(model, msg.content["arrays"])
    _, pixels, _, labels = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    loss, accuracy = test(model, pixels, labels)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(labels)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
