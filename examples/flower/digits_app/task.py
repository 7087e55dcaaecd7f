"""digits-app: its model and its data."""

import numpy as np
from flwr.app import Array, ArrayRecord
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

CLASSES = np.arange(10)
FEATURES = 64


def make_model(learning_rate: float) -> SGDClassifier:
    """A softmax classifier whose weights are zeros."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=0)
    model.partial_fit(np.zeros((len(CLASSES), FEATURES)), CLASSES, classes=CLASSES)
    model.coef_ = np.zeros((len(CLASSES), FEATURES))
    model.intercept_ = np.zeros(len(CLASSES))
    return model


def get_arrays(model: SGDClassifier) -> ArrayRecord:
    return ArrayRecord({"coef": Array(model.coef_), "intercept": Array(model.intercept_)})


def set_arrays(model: SGDClassifier, arrays: ArrayRecord) -> None:
    model.coef_ = arrays["coef"].numpy().astype(float)
    model.intercept_ = arrays["intercept"].numpy().astype(float)


def load_data(partition_id: int, num_partitions: int):
    """This partition's digits, to train and to test on."""
    pixels, labels = load_digits(return_X_y=True)
    mine = slice(partition_id, None, num_partitions)
    return train_test_split(pixels[mine] / 16, labels[mine], test_size=0.2, random_state=42)


def test(model: SGDClassifier, pixels, labels) -> tuple[float, float]:
    """Loss and accuracy."""
    return log_loss(labels, model.predict_proba(pixels), labels=CLASSES), model.score(pixels, labels)
