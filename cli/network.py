"""`quorate network`: the one file that clients and auditors need, and the names that such files have here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import complete_network
from cli.explain import explained
from cli.founding import read_genesis
from cli.output import fields, line, reading, remark, table, tell
from fl.client.errors import BadFile
from fl.client.networkfile import NETWORK_FILE, network_of, read_network, render_network

if TYPE_CHECKING:
    from fl.client.networks import Chosen, Networks

FILE = click.Path(path_type=Path, dir_okay=False)
_HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="QUORATE_HOME",
    help="Where names are kept.  [default: ~/.quorate]",
)


@click.group()
def network() -> None:
    """What clients need to know of a chain, and names for it.

    Every --network takes a path or a name, and so does quorate.connect().
    """


@network.command()
@click.argument("genesis", type=FILE)
@click.option("-o", "--output", type=FILE, help=f"File to write, {NETWORK_FILE} for example; without it, print.")
@reading
def export(genesis: Path, output: Path | None) -> None:
    """Write which chain a genesis starts, who validates it and where they answer.

    It holds no secret. Whoever is given it checks everything else by it, so hand it over by a way that you trust.
    """
    with explained():
        found = network_of(read_genesis(genesis))
    text = render_network(found)
    if output is not None:
        try:
            output.write_text(text)
        except OSError as error:
            raise BadFile("UNWRITABLE", f"{output} cannot be written: {error.strerror}.", "Name another.") from error
    data = {
        "name": found.name,
        "chain_id": found.checkpoint.chain_id.hex(),
        "file": None if output is None else str(output),
        "text": text,
    }
    tell(data, lambda: click.echo(text, nl=False) if output is None else line(str(output)))


@network.command()
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--key", type=FILE, help="Key file of the account that acts on it, unless another is named.")
@click.option("--use", "usual", is_flag=True, help="Make it the one that commands ask without --network.")
@_HOME
@reading
def add(name: str, file: Path, key: Path | None, usual: bool, home: Path | None) -> None:
    """Give the network of FILE a NAME on this machine.

    The file is copied. A newer file of the same chain takes its place; one of another chain is refused.
    """
    networks = _networks(home)
    networks.add(name, file, key, usual=usual)
    data = _data(networks, networks.named(name))
    tell(data, lambda: fields(data))
    if not data["default"]:
        remark(f"Make it the one that is asked without --network: quorate network use {name}")


@network.command("list")
@_HOME
@reading
def list_networks(home: Path | None) -> None:
    """List the networks that have a name here."""
    networks = _networks(home)
    found = [_data(networks, networks.named(name)) for name in networks.names()]
    rows = [
        (each["name"], "default" if each["default"] else "", each["chain_id"], each["validators"], each["key"])
        for each in found
    ]
    tell(found, lambda: table(("NAME", "USE", "CHAIN ID", "VALIDATORS", "KEY"), rows, spare=("VALIDATORS",)))
    if not found:
        remark("None has a name yet: quorate network add NAME FILE.")


@network.command()
@click.argument("name", shell_complete=complete_network)
@_HOME
@reading
def use(name: str, home: Path | None) -> None:
    """Have commands ask the network NAME when none is named."""
    networks = _networks(home)
    networks.use(name)
    data = _data(networks, networks.named(name))
    tell(data, lambda: line(f"Commands ask {name} from here on."))


@network.command()
@click.argument("network", shell_complete=complete_network, required=False)
@_HOME
@reading
def show(network: str | None, home: Path | None) -> None:
    """Show what is known of a NETWORK, by name or file: its chain, its validators, whose key acts on it."""
    networks = _networks(home)
    chosen = networks.choose(network)
    members = [
        {"name": each.name, "address": each.address, "rpc": each.rpc, "consensus_key": each.consensus_key.hex()}
        for each in read_network(chosen.file).validators.members
    ]
    data = {**_data(networks, chosen), "members": members}

    def draw() -> None:
        fields({name: value for name, value in data.items() if name != "members"})
        line()
        rows = [(each["name"], each["address"], each["rpc"], each["consensus_key"]) for each in members]
        table(("VALIDATOR", "ADDRESS", "RPC", "CONSENSUS KEY"), rows)

    tell(data, draw)


@network.command()
@click.argument("name", shell_complete=complete_network)
@_HOME
@reading
def remove(name: str, home: Path | None) -> None:
    """Forget the name of a network. Keys, receipts and what is in flight stay."""
    networks = _networks(home)
    data = _data(networks, networks.named(name))
    networks.remove(name)
    tell(data, lambda: line(f"{name} is forgotten."))


def _networks(home: Path | None) -> Networks:
    from fl.client.networks import Networks

    return Networks(home)


def _data(networks: Networks, chosen: Chosen) -> dict[str, object]:
    known = read_network(chosen.file)
    return {
        "name": chosen.name or None,
        "chain": known.name,
        "chain_id": known.checkpoint.chain_id.hex(),
        "epoch": known.validators.epoch,
        "validators": len(known.validators.members),
        "default": bool(chosen.name) and networks.config().network == chosen.name,
        "key": None if chosen.key is None else str(chosen.key),
        "file": str(chosen.file),
    }
