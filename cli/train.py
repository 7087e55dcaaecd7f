"""`quorate train`: take part in a job that exists, with the code and the data of this site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.output import line, reading, remark, running_code, tell
from fl.client.errors import BadInput

if TYPE_CHECKING:
    from fl.client.apps import Named
    from fl.client.sync import Job
    from fl.client.trackers import Tracker


@click.command()
@click.argument("job")
@click.option("--app", metavar="MODULE:NAME", help="The training code, looked for here first.  [default: the job's]")
@click.option(
    "--flower", metavar="MODULE:APP", help="An app of Flower's, unchanged: short for --app flower:MODULE:APP."
)
@click.option("--run-config", metavar="'A=1 B=2'", help="With an app of Flower's: its run config, over the job's.")
@click.option("--node-config", metavar="'A=1 B=2'", help="With an app of Flower's: partition-id=0 num-partitions=4.")
@click.option("--part", default="1/1", show_default=True, metavar="I/K", help="The share of the app's data.")
@click.option("--accept", metavar="HASH", help="Of the rules that were agreed on; any others are refused.")
@click.option("--policy", type=FILE, help="What this site admits.  [default: policy.toml in the home, if it is there]")
@click.option(
    "--tracker", "trackers", multiple=True, metavar="tensorboard:DIR", help="Who is told of rounds; repeatable."
)
@click.option("--wait", "wait_s", default=600.0, show_default=True, help="Seconds until there is such a job.")
@click.option("--any-app", is_flag=True, help="Train with code that is not the one that the job names.")
@client_options
@running_code
@reading
def train(
    client: Client,
    job: str,
    app: str | None,
    flower: str | None,
    run_config: str | None,
    node_config: str | None,
    part: str,
    accept: str | None,
    policy: Path | None,
    trackers: tuple[str, ...],
    wait_s: float,
    any_app: bool,
) -> None:
    """Train in JOB until it is over, and evaluate in it, as the roles of the account allow.

    The code runs here, on data that never leaves this machine: by default the app that the job names, which has to be
    the one that its rules hash. It prints a line for each answer: the round, the model that it was given, examples,
    metrics, and what became of it. It may be stopped and started again at any time: it goes on where it was.

    \b
    quorate train digits --key alice.key --part 1/3
    quorate train digits --key alice.key --app wards:app --accept 91a9…
    quorate train cifar --key alice.key --flower pytorchexample.client_app:app --node-config partition-id=0
    """
    from cli.participation import Answers, Part, awaited, held_in, roles_in, take_part
    from fl.client.sync import connect
    from fl.records import JobStatus, Role

    if app is not None and flower is not None:
        raise click.UsageError("Give at most one of --app and --flower.")
    if client.key is None:
        raise BadInput("NO_KEY", "This needs an account.", "Name a key: --key FILE.")
    share = Part.parse(part)
    told = [_tracker(each) for each in trackers]
    answers = Answers()
    with connect(
        client.given,
        client.key,
        passphrase=client.secret(),
        home=client.home,
        policy=policy,
        patience_s=client.patience_s,
    ) as network:
        roles = roles_in(network, {Role.TRAINER, Role.EVALUATOR})
        found = awaited(network, job, wait_s)
        if app is None and flower is None and found.rules.app:
            # To load code is to run it: what the creator names is loaded if the site admits it.
            network.policy.read().check_app(found.rules.app, found.rules.app_digest)
        named = _code(found, app or (f"flower:{flower}" if flower else None), run_config, node_config, any_app)
        network.policy.read().check_app(named.name, named.digest)
        remark(f"{found.name} {found.id}, rules {found.rules_hash}, app {named.name}")
        seed = int.from_bytes(bytes.fromhex(network.account)[:4], "big")
        take_part(
            *(found, named.app, held_in(named, share), share, roles, accept, seed), tell=answers.tell, trackers=told
        )
        status, cid = JobStatus(found.status().status).name.lower(), found.model_cid()
    data = {"job": found.name, "id": found.id, "status": status, "answers": answers.data(), "model": cid}

    def show() -> None:
        line(f"{found.name} is {status}: {len(answers.given)} answers given.")
        line(f"model {cid}")

    tell(data, show)


def _code(job: Job, wanted: str | None, run_config: str | None, node_config: str | None, any_app: bool) -> Named:
    from cli.participation import check_same_app
    from fl.client.apps import load_app

    name = wanted or job.rules.app
    if not name:
        raise BadInput("NO_APP", f"The job {job.name} names no app.", "Say what trains: --app package.module:object.")
    named = load_app(name, Path.cwd(), run_config=run_config, node_config=node_config)
    if job.rules.app and not any_app:
        check_same_app(job, named, f"{name} is another")
    return named


def _tracker(text: str) -> Tracker:
    kind, _, place = text.partition(":")
    if kind != "tensorboard" or not place:
        raise BadInput("UNKNOWN_TRACKER", f"There is no tracker '{text}'.", "There is: tensorboard:DIRECTORY.")
    from fl.client.trackers import TensorBoard

    return TensorBoard(place)
