"""Train a small convolutional network in PyTorch together with others, each on digits of their own.

    python examples/torch_cnn.py net/consortium.toml net/keys/creator.key create 3
    python examples/torch_cnn.py net/consortium.toml net/keys/trainer-0.key train 1/3
    python examples/torch_cnn.py net/consortium.toml net/keys/trainer-1.key train 2/3
    python examples/torch_cnn.py net/consortium.toml net/keys/trainer-2.key train 3/3

docs/tutorial.md tells how to start the network in `net`, docs/frameworks.md what becomes of the module's tensors.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import quorate
import quorate.torch

# The trainers share one machine here.
torch.set_num_threads(1)
ROUNDS = 8

pixels, labels = load_digits(return_X_y=True)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
y = torch.tensor(labels)[order]
unseen = slice(0, 360)


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def fit(net: nn.Module, mine: slice, lr: float, epochs: int) -> int:
    """How many examples it has seen in each epoch."""
    net.train()
    here_x, here_y = x[360:][mine], y[360:][mine]
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(here_y)).split(32):
            optimiser.zero_grad()
            cross_entropy(net(here_x[batch]), here_y[batch]).backward()
            optimiser.step()
    return len(here_y)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    return float((net.eval()(x[unseen]).argmax(1) == y[unseen]).float().mean())


def create(network: quorate.Network, trainers: int) -> None:
    torch.manual_seed(0)
    arrays, roles = quorate.torch.draft(cnn)
    job = network.create_job(
        "digits-cnn",
        arrays,
        **roles,
        rounds=ROUNDS,
        target=trainers,
        privacy="visible-to-validators",
        config={"lr": 0.05, "epochs": 1},
        metrics=["accuracy"],
    )
    print(f"created {job.name}; its rules hash to {job.rules_hash}")


def train(network: quorate.Network, number: int, of: int) -> None:
    net, mine = cnn(), slice(number - 1, None, of)
    job = network.job("digits-cnn")
    job.join()
    for task in job.tasks():
        quorate.torch.load(net, task.model)
        before = accuracy(net)
        examples = fit(net, mine, **task.config)
        receipt = task.submit(weights=quorate.torch.weights(net), examples=examples, metrics={"accuracy": before})
        print(f"round {task.round}: the model came with {before:.1%}, my update is {receipt.status}")
    quorate.torch.load(net, job.model())
    print(f"the final model has {accuracy(net):.1%}")


if __name__ == "__main__":
    network_file, key_file, action, share = sys.argv[1:]
    with quorate.connect(network_file, key_file) as network:
        if action == "create":
            create(network, int(share))
        else:
            train(network, *map(int, share.split("/")))
