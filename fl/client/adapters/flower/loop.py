"""Answers a job with an app of Flower's, from Python; `quorate train JOB --flower …` is the same from a shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl.client.adapters.flower.app import load
from fl.client.adapters.flower.reference import Overrides
from fl.client.sync import Job
from fl.client.trackers import Tracker
from fl.client.trainer import evaluate_for, train_for


def train(
    job: Job,
    app: Any,
    *,
    run_config: Overrides = None,
    node_config: Overrides = None,
    trackers: Sequence[Tracker] = (),
) -> None:
    """Answers every round that this account is asked in, until the job is over. `app` is a ClientApp, a NumPyClient, a
    client_fn, or the name of one."""
    train_for(job, load(app, run_config, node_config), {}, 0, trackers=trackers)


def evaluate(
    job: Job,
    app: Any,
    *,
    run_config: Overrides = None,
    node_config: Overrides = None,
    trackers: Sequence[Tracker] = (),
) -> None:
    """Answers every evaluation that this account is asked in, until the job is over."""
    evaluate_for(job, load(app, run_config, node_config), {}, trackers=trackers)
