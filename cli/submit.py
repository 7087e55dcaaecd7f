"""`quorate submit`: one update from a file, for those who train with other tools."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.job import tell_receipt
from cli.output import reading, waiting
from fl.client.errors import BadInput, RefusedByChain, TimedOut

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt


@click.command()
@click.argument("job")
@click.option("--file", "file", type=FILE, required=True, help="The trained tensors: .npz or .safetensors.")
@click.option("--delta", is_flag=True, help="The file holds the difference to the round's model, not the new weights.")
@click.option("--examples", type=int, required=True, help="How many examples they were trained on.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Each metric that the job names.")
@click.option("--group", help="Of tensors: which one the file changes, in a job that names groups.")
@click.option("--round", "number", type=int, help="Submit to this round or not at all.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds until a round must be open.")
@client_options
@reading
def submit(
    client: Client,
    job: str,
    file: Path,
    delta: bool,
    examples: int,
    metrics: tuple[str, ...],
    group: str | None,
    number: int | None,
    timeout_s: float,
) -> None:
    """Submit an update that is in a file to the open round of JOB, and wait for its proven receipt.

    The account must have joined the job. Exit code 4 if the chain did not take it: the round was over (LATE), or this
    account has answered it (DUPLICATE).
    """
    from fl.client.arrays import read_arrays

    arrays, values = read_arrays(file), dict(map(_metric, metrics))

    async def work(network: AsyncNetwork) -> Receipt:
        found = await network.job(job)
        tasks = found.tasks()
        try:
            async with asyncio.timeout(timeout_s):
                task = await anext(tasks)
        except TimeoutError:
            raise TimedOut(
                "NO_OPEN_ROUND", f"No round of {job} is open for this account.", "Try again later."
            ) from None
        except StopAsyncIteration:
            raise RefusedByChain.of("JOB_CLOSED", f"The job {job} is over.") from None
        finally:
            await tasks.aclose()
        if number is not None and task.round != number:
            raise BadInput("OTHER_ROUND", f"Round {task.round} is open, not {number}.", "Train on its model first.")
        weights, change = (None, arrays) if delta else (arrays, None)
        return await task.submit(weights=weights, delta=change, examples=examples, metrics=values, group=group)

    with waiting("Submitting"):
        receipt = client.run(work)
    if not receipt.accepted:
        raise RefusedByChain.of(receipt.status)
    tell_receipt(receipt)


def _metric(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        if separator:
            return name, float(value)
    except ValueError:
        pass
    raise BadInput("BAD_METRIC", f"'{text}' is no metric.", "As in --metric loss=0.25.")
