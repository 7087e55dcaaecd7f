"""Train together without anyone in the middle: `import quorate` is the face of `fl.client`.

Enters: a network file, a key file, your arrays. Leaves: models that are proven, receipts that prove your part in them.

    job = quorate.connect("consortium.toml", key="alice.key").job("digits")
    for task in job.tasks():
        weights, examples, loss = train(task.model, my_data, **task.config)
        task.submit(weights=weights, examples=examples, metrics={"loss": loss})

An evaluator's loop is `for each in job.evaluations()`, and its answer `each.submit(metrics=…, examples=…)`.
"""

from fl.client.errors import BadFile, BadInput, QuorateError, RefusedByChain, TimedOut, Unreachable, Unverified
from fl.client.home import Pending
from fl.client.keyfile import load_key, new_key
from fl.client.network import AsyncNetwork, connect_async
from fl.client.receipt import Receipt
from fl.client.report import RoundReport
from fl.client.signing import sign_offline
from fl.client.sync import Blobs, Datasets, Evaluation, Job, Network, Task, connect
from fl.client.transfer.blobs import BlobReceipt, BlobStat
from fl.client.transfer.download import Fetched

__all__ = [
    "AsyncNetwork",
    "BadFile",
    "BadInput",
    "BlobReceipt",
    "BlobStat",
    "Blobs",
    "Datasets",
    "Evaluation",
    "Fetched",
    "Job",
    "Network",
    "Pending",
    "QuorateError",
    "Receipt",
    "RefusedByChain",
    "RoundReport",
    "Task",
    "TimedOut",
    "Unreachable",
    "Unverified",
    "connect",
    "connect_async",
    "load_key",
    "new_key",
    "sign_offline",
]
