"""Train low-rank adapters of a frozen network together: an update holds the adapters, and nothing else.

    python examples/lora.py net/consortium.toml net/keys/creator.key create 3
    python examples/lora.py net/consortium.toml net/keys/trainer-0.key train 1/3
    python examples/lora.py net/consortium.toml net/keys/trainer-1.key train 2/3
    python examples/lora.py net/consortium.toml net/keys/trainer-2.key train 3/3

The creator has a network that reads digits. The trainers' scanners lie on their side: together they teach it digits
that are turned by 90 degrees, in adapters of rank 8. docs/frameworks.md says what becomes of the frozen tensors.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import quorate
import quorate.torch
from fl.client.jobdraft import draft_job
from fl.updates import form_of

# The trainers share one machine here.
torch.set_num_threads(1)
ROUNDS, RANK = 10, 8
RULES = {"rounds": ROUNDS, "privacy": "visible-to-validators", "metrics": ["accuracy"]}

pixels, labels = load_digits(return_X_y=True)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
upright = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 8, 8)[order] / 16
x, turned, y = upright.flatten(1), upright.rot90(1, (1, 2)).flatten(1), torch.tensor(labels)[order]


class Adapted(nn.Module):
    """A linear layer that stays as it is, and what is learnt beside it."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.base = nn.Linear(size_in, size_out)
        self.lora_a = nn.Parameter(torch.randn(RANK, size_in) / size_in**0.5)
        self.lora_b = nn.Parameter(torch.zeros(size_out, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


def network_of_adapters() -> nn.Module:
    return nn.Sequential(Adapted(64, 256), nn.ReLU(), Adapted(256, 256), nn.ReLU(), Adapted(256, 10))


def fit(net: nn.Module, learnt: str, x: torch.Tensor, y: torch.Tensor, lr: float, epochs: int) -> None:
    parameters = [each for name, each in net.named_parameters() if learnt in name]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(32):
            optimiser.zero_grad()
            cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor) -> float:
    """On the first 360, which nobody trains on."""
    return float((net(x[:360]).argmax(1) == y[:360]).float().mean())


def update_bytes(net: nn.Module, **roles: list[str]) -> int:
    rules = draft_job("sizes", quorate.torch.arrays(net), target=1, **RULES, **roles).rules
    return form_of(rules, 0).data_bytes


def create(network: quorate.Network, trainers: int) -> None:
    torch.manual_seed(0)
    net = network_of_adapters()
    fit(net, "base", x[360:800], y[360:800], lr=0.003, epochs=10)
    print(f"the base reads {accuracy(net, x):.1%} of upright digits, {accuracy(net, turned):.1%} of turned ones")
    roles = quorate.torch.roles(net, train=["*.lora_*"])
    print(f"an update takes {update_bytes(net, **roles)} bytes; of the whole network it would be {update_bytes(net)}")
    config = {"lr": 0.01, "epochs": 3}
    job = network.create_job("lora", quorate.torch.arrays(net), target=trainers, config=config, **RULES, **roles)
    print(f"created {job.name}; its rules hash to {job.rules_hash}")


def train(network: quorate.Network, number: int, of: int) -> None:
    net, mine = network_of_adapters(), slice(800 + number - 1, None, of)
    job = network.job("lora")
    job.join()
    for task in job.tasks():
        quorate.torch.load(net, task.model)
        before = accuracy(net, turned)
        fit(net, "lora", turned[mine], y[mine], **task.config)
        weights = quorate.torch.weights(net, job.averaged)
        receipt = task.submit(weights=weights, examples=len(y[mine]), metrics={"accuracy": before})
        print(f"round {task.round}: the model came with {before:.1%}, my update is {receipt.status}")
    quorate.torch.load(net, job.model())
    print(f"the final model reads {accuracy(net, turned):.1%} of turned digits")


if __name__ == "__main__":
    network_file, key_file, action, share = sys.argv[1:]
    with quorate.connect(network_file, key_file) as network:
        if action == "create":
            create(network, int(share))
        else:
            train(network, *map(int, share.split("/")))
