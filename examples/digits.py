"""Train a scikit-learn classifier together with others, each on digits of their own.

    python examples/digits.py net/consortium.toml net/keys/creator.key create 3
    python examples/digits.py net/consortium.toml net/keys/trainer-0.key train 1/3
    python examples/digits.py net/consortium.toml net/keys/trainer-1.key train 2/3
    python examples/digits.py net/consortium.toml net/keys/trainer-2.key train 3/3

docs/tutorial.md tells how to start the network in `net`.
"""

import sys

from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import quorate
import quorate.sklearn

ROUNDS = 10

pixels, labels = load_digits(return_X_y=True)
pixels, unseen, labels, unseen_labels = train_test_split(pixels / 16, labels, test_size=0.2, random_state=0)


def classifier(eta0: float, number: int = 0) -> SGDClassifier:
    sgd = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=eta0, random_state=number)
    return quorate.sklearn.prepare(sgd, features=64, classes=range(10))


def create(network: quorate.Network, trainers: int) -> None:
    job = network.create_job(
        "digits-sgd",
        quorate.sklearn.arrays(classifier(0.03)),
        rounds=ROUNDS,
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
        local = classifier(task.config["eta0"], number)
        quorate.sklearn.load(local, task.model)
        before = local.score(unseen, unseen_labels)
        for _ in range(task.config["epochs"]):
            local.partial_fit(pixels[mine], labels[mine])
        weights = quorate.sklearn.weights(local)
        receipt = task.submit(weights=weights, examples=len(labels[mine]), metrics={"accuracy": before})
        print(f"round {task.round}: the model came with {before:.1%}, my update is {receipt.status}")
    print(f"the final model is {job.model_cid()}")


if __name__ == "__main__":
    network_file, key_file, action, share = sys.argv[1:]
    with quorate.connect(network_file, key_file) as network:
        if action == "create":
            create(network, int(share))
        else:
            train(network, *map(int, share.split("/")))
