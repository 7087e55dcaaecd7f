"""Flower apps that do what they should not, each in its own way."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Parameters, Status
from flwr.serverapp import Grid, ServerApp


class Given(NumPyClient):
    """Answers what it was made with."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def fit(self, parameters, config):
        return self.answer(parameters) if callable(self.answer) else self.answer

    def evaluate(self, parameters, config):
        return self.answer(parameters) if callable(self.answer) else self.answer


class Ill(Client):
    def fit(self, ins):
        status = Status(Code.FIT_NOT_IMPLEMENTED, "I am ill today")
        return FitRes(status, Parameters([], "numpy.ndarray"), 0, {})


def broken(parameters):
    raise ZeroDivisionError("there are no patients")


raises = Given(broken)
no_tuple = Given(7)
tensors_as_array = Given((np.zeros(3), 5, {}))
too_few = Given(lambda parameters: (parameters[:1], 5, {}))
wrong_shape = Given(lambda parameters: ([parameters[0].T, *parameters[1:]], 5, {}))
text_for_numbers = Given(lambda parameters: ([np.array(["a"]), *parameters[1:]], 5, {}))
objects = Given(lambda parameters: ([np.array([{}]), *parameters[1:]], 5, {}))
changes_frozen = Given(lambda parameters: ([*parameters[:-1], parameters[-1] + 1], 5, {}))
no_loss = Given((None, 5, {}))
ill = Ill()
not_an_app = np.zeros(3)
a_class = Given


def two_arguments(first, second):
    return None


def message_app(answer) -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(msg: Message, context: Context) -> Message:
        return answer(msg)

    return made


def reply(msg, arrays, metrics):
    records = {f"arrays{place}": each for place, each in enumerate(arrays)}
    records |= {f"metrics{place}": MetricRecord(each) for place, each in enumerate(metrics)}
    return Message(RecordDict(records), reply_to=msg)


nothing = message_app(lambda msg: None)
no_arrays = message_app(lambda msg: reply(msg, [], [{"num-examples": 5}]))
no_metrics = message_app(lambda msg: reply(msg, [msg.content["arrays"]], []))
no_examples = message_app(lambda msg: reply(msg, [msg.content["arrays"]], [{"loss": 1.0}]))
half_examples = message_app(lambda msg: reply(msg, [msg.content["arrays"]], [{"num-examples": 0.5}]))
other_names = message_app(lambda msg: reply(msg, [ArrayRecord({"else": Array(np.zeros(3))})], [{"num-examples": 5}]))
untrained = ClientApp()

silent_server = ServerApp()
asking_server = ServerApp()
failing_server = ServerApp()
other_records_server = ServerApp()


@silent_server.main()
def silent(grid: Grid, context: Context) -> None:
    """Trains nothing."""


@asking_server.main()
def asking(grid: Grid, context: Context) -> None:
    while not grid.send_and_receive([]):
        pass


@failing_server.main()
def failing(grid: Grid, context: Context) -> None:
    raise OSError("no disk")


@other_records_server.main()
def other_records(grid: Grid, context: Context) -> None:
    record = RecordDict({"model": ArrayRecord({"w": Array(np.zeros(3))})})
    grid.send_and_receive([grid.create_message(record, "train", 2, "1")])
