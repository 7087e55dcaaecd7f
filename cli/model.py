"""`quorate model`: the models that rounds have made, verified against their CIDs in the proven state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options, copy_file, write_arrays
from cli.job import ROUND_COLUMNS, round_data, round_row
from cli.output import fields, reading, table, tell
from cli.transfer import transferring
from fl.client.errors import BadInput

if TYPE_CHECKING:
    from fl.client.job import AsyncJob
    from fl.client.network import AsyncNetwork
    from fl.records import Job, Round


@click.group()
def model() -> None:
    """The models that rounds have made."""


@model.command()
@click.argument("job")
@click.option("--round", "number", type=int, help="The model that this round made (0: the initial); else the newest.")
@click.option("--best", is_flag=True, help="The model that evaluators have measured to be best, by the job's goal.")
@click.option(
    "-o", "--output", type=FILE, help="File to write: .safetensors, or .npz.  [default: JOB-ROUND.safetensors]"
)
@client_options
@reading
def get(client: Client, job: str, number: int | None, best: bool, output: Path | None) -> None:
    """Fetch a model. Its bytes are checked against the CID that a quorum of validators has signed."""
    if best and number is not None:
        raise click.UsageError("Give at most one of --round and --best.")

    with transferring() as progress:

        async def work(network: AsyncNetwork) -> tuple[str, int, str, Path, int]:
            found = await network.job(job)
            made_by = number if number is not None else _made_by(await found.status(), best)
            cid, kept = await found.model_file(made_by, progress=progress)
            path = output or Path(f"{found.name}-{made_by}.safetensors")
            if path.suffix == ".npz":
                write_arrays(path, await found.model(made_by))
            else:
                copy_file(kept, path)
            return found.name, made_by, cid, path, kept.stat().st_size

        name, made_by, cid, path, size_bytes = client.run(work)
    data = {"job": name, "round": made_by, "cid": cid, "bytes": size_bytes, "file": str(path)}
    tell(data, lambda: fields(data))


def _made_by(record: Job, best: bool) -> int:
    if not best:
        return record.model_round
    if not record.best:
        raise BadInput("NO_BEST", "No model of this job has been measured by its goal.", "Ask for the newest one.")
    return record.best_round


@model.command("list")
@click.argument("job")
@client_options
@reading
def list_models(client: Client, job: str) -> None:
    """List the rounds of JOB that are over, with the model that each made."""

    async def work(network: AsyncNetwork) -> tuple[AsyncJob, list[Round]]:
        from fl.records import Phase

        found = await network.job(job)
        newest = (await found.status()).round
        rounds = [await found.round(number) for number in range(1, newest + 1)]
        return found, [each for each in rounds if each is not None and each.phase >= Phase.CLOSED]

    found, rounds = client.run(work)
    tell(
        [round_data(found, each) for each in rounds],
        lambda: table(ROUND_COLUMNS, [round_row(found, each) for each in rounds]),
    )
