"""`quorate network`: the one file that clients and auditors need."""

from __future__ import annotations

from pathlib import Path

import click

from cli.explain import explained
from cli.founding import read_genesis
from cli.genesis import FILE
from fl.client.networkfile import NETWORK_FILE, network_of, render_network


@click.group()
def network() -> None:
    """What clients need to know of a chain."""


@network.command()
@click.argument("genesis", type=FILE)
@click.option("-o", "--output", type=FILE, help=f"File to write, {NETWORK_FILE} for example; without it, print.")
def export(genesis: Path, output: Path | None) -> None:
    """Write which chain a genesis starts, who validates it and where they answer.

    It holds no secret. Whoever is given it checks everything else by it, so hand it over by a way that you trust.
    """
    with explained():
        text = render_network(network_of(read_genesis(genesis)))
    if output is None:
        click.echo(text, nl=False)
        return
    output.write_text(text)
    click.echo(str(output))
