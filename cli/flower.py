"""`quorate flower`: stock Flower SuperNodes as trainers of a job."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.output import line, reading, tell
from fl.client.errors import BadInput

if TYPE_CHECKING:
    from fl.client.flowergate.fab import Bundle
    from fl.client.flowergate.serve import Place, Serving
    from fl.client.job import AsyncJob
    from fl.client.network import AsyncNetwork

DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)


@click.group()
def flower() -> None:
    """Stock Flower SuperNodes as trainers of a job."""


@flower.command()
@click.argument("job")
@click.option("--app", type=DIRECTORY, help="Directory of the Flower app, with its pyproject.toml.")
@click.option("--fab", type=FILE, help="The app as flwr build bundled it.")
@click.option("--listen", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT", help="For the SuperNode.")
@click.option(
    "--records",
    type=click.Choice(["auto", "message", "legacy"]),
    default="auto",
    show_default=True,
    help="What the app reads: records by name, or those of a NumPyClient.",
)
@click.option("--run-config", metavar="'A=1 B=2'", help="Over the app's own [tool.flwr.app.config].")
@click.option(
    "--supernode-key", "keys", type=FILE, multiple=True, help="Public key of a SuperNode that is let in; repeatable."
)
@click.option("--tls-cert", type=FILE, help="PEM certificate of this address.")
@click.option("--tls-key", type=FILE, help="Its private key.")
@click.option("--insecure", is_flag=True, help="Listen where others can call without TLS or without keys.")
@click.option("--accept", metavar="HASH", help="Of the rules that were agreed on; any others are refused.")
@click.option("--policy", type=FILE, help="What this site admits.  [default: policy.toml in the home, if it is there]")
@click.option("--any-app", is_flag=True, help="Serve code that is not the one that the job names.")
@client_options
@reading
def serve(
    client: Client,
    job: str,
    app: Path | None,
    fab: Path | None,
    listen: str,
    records: str,
    run_config: str | None,
    keys: tuple[Path, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    accept: str | None,
    policy: Path | None,
    any_app: bool,
) -> None:
    """Let a flower-supernode of this site train in JOB until it is over, and evaluate if the account's roles say so.

    It takes the place of Flower's SuperLink, for one SuperNode of version 1.40 or later, which runs the app unchanged.
    The account's key stays here, and signs what the app makes.

    \b
    quorate flower serve digits --key alice.key --app ./digits-app --listen 127.0.0.1:8000
    flower-supernode --insecure --superlink 127.0.0.1:8000 --node-config 'partition-id=0 num-partitions=2'
    """
    import asyncio

    from fl.client.flowergate.serve import serve as served
    from fl.client.network import connect_async
    from fl.records import JobStatus

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("Give --tls-cert and --tls-key, or neither.")
    place = _place(listen, tls_cert, tls_key, keys, insecure)
    serving = _serving(_bundle(app, fab), records, run_config, any_app)
    if client.key is None:
        raise BadInput("NO_KEY", "This needs an account.", "Name a key: --key FILE.")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("quorate.flower").setLevel(logging.INFO)

    async def work() -> dict[str, object]:
        network = await connect_async(
            client.given,
            client.key,
            passphrase=client.secret(),
            home=client.home,
            patience_s=client.patience_s,
            policy=policy,
        )
        async with network:
            found = await network.job(job)
            trains, evaluates = await _joined(network, found, serving, accept)
            await served(found, serving, place, trains=trains, evaluates=evaluates, say=line)
            status = JobStatus((await found.status()).status).name.lower()
            return {"job": found.name, "id": found.id, "status": status, "model": await found.model_cid()}

    data = asyncio.run(work())
    tell(data, lambda: line(f"{data['job']} is {data['status']}: model {data['model']}"))


def _place(
    listen: str, certificate: Path | None, private_key: Path | None, keys: tuple[Path, ...], insecure: bool
) -> Place:
    from fl.client.flowergate.serve import Place
    from fl.client.flowergate.visitors import read_public_key

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput("BAD_ADDRESS", f"'{listen}' is no address.", "As in 127.0.0.1:8000.")
    known = tuple(map(read_public_key, keys))
    place = Place(host.strip("[]"), int(port), certificate, private_key, known, insecure)
    place.check()
    return place


def _bundle(app: Path | None, fab: Path | None) -> Bundle:
    from fl.client.flowergate.fab import build, read

    if app is not None and fab is None:
        return build(app)
    if fab is not None and app is None:
        return read(fab)
    raise click.UsageError("Give one of --app and --fab.")


def _serving(bundle: Bundle, records: str, run_config: str | None, any_app: bool) -> Serving:
    from fl.client.adapters.flower.reference import config_of
    from fl.client.flowergate.forms import Records
    from fl.client.flowergate.serve import Serving

    form = bundle.records() if records == "auto" else Records(records)
    return Serving(bundle, form, config_of(run_config, "run config"), any_app)


async def _joined(network: AsyncNetwork, job: AsyncJob, serving: Serving, accept: str | None) -> tuple[bool, bool]:
    """Whether the account trains and whether it evaluates, once it has joined as what it may."""
    from fl.client.flowergate.serve import check_app
    from fl.records import Role

    check_app(job, serving)
    member = await network.member()
    roles = set(member.roles) if member is not None and not member.revoked else set()
    trains = Role.TRAINER.value in roles
    evaluates = Role.EVALUATOR.value in roles and job.rules.evaluation.every > 0
    if not trains and not evaluates:
        what = f"The account {network.account[:16]}… neither trains nor evaluates on {network.name}."
        raise BadInput("NO_ROLE", what, "Ask a registrar, who grants roles by quorate member register.")
    if trains:
        await job.join(accept)
    if evaluates:
        await job.join(accept, role=Role.EVALUATOR.value)
    return trains, evaluates
