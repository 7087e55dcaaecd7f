"""Train a scikit-learn classifier together with others, each on digits of their own.

    python examples/digits.py net/consortium.toml net/keys/creator.key create 3
    python examples/digits.py net/consortium.toml net/keys/trainer-0.key train 1/3
    python examples/digits.py net/consortium.toml net/keys/trainer-1.key train 2/3
    python examples/digits.py net/consortium.toml net/keys/trainer-2.key train 3/3

docs/first-job.md tells how to start the network in `net`.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import quorate

pixels, labels = load_digits(return_X_y=True)
pixels, unseen, labels, unseen_labels = train_test_split(pixels / 16, labels, test_size=0.2, random_state=0)


def create(network: quorate.Network, trainers: int) -> None:
    start = {"coef": np.zeros((10, 64)), "intercept": np.zeros(10)}
    job = network.create_job(
        "digits-sgd",
        start,
        rounds=10,
        target=trainers,
        privacy="visible-to-validators",
        config={"epochs": 5, "eta0": 0.03},
        metrics=["accuracy"],
    )
    print(f"created {job.name}; its rules hash to {job.rules_hash}")


def train(network: quorate.Network, number: int, of: int) -> None:
    mine = slice(number - 1, None, of)
    job = network.job("digits-sgd")
    job.join()
    for task in job.tasks():
        local = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=task.config["eta0"], random_state=number)
        local.partial_fit(pixels[:10], labels[:10], classes=np.arange(10))
        local.coef_, local.intercept_ = (task.model[name].astype(float) for name in ("coef", "intercept"))
        before = local.score(unseen, unseen_labels)
        for _ in range(task.config["epochs"]):
            local.partial_fit(pixels[mine], labels[mine])
        receipt = task.submit(
            weights={"coef": local.coef_, "intercept": local.intercept_},
            examples=len(labels[mine]),
            metrics={"accuracy": before},
        )
        print(f"round {task.round}: the model came with {before:.1%}, my update is {receipt.status}")
    cid, _ = job.model_bytes()
    print(f"the final model is {cid}")


network_file, key_file, action, share = sys.argv[1:]
with quorate.connect(network_file, key_file) as network:
    if action == "create":
        create(network, int(share))
    else:
        train(network, *map(int, share.split("/")))
