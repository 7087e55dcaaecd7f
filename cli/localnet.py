"""`quorate localnet`: a chain of several validators on this machine, to try things out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chain.genesis import Params
from cli.explain import explained
from cli.localnets import MOST_TRAINERS, MOST_VALIDATORS, LocalNetwork, Plan, compile_kernels
from cli.node import progress
from cli.output import fields, json_wanted, line, reading, remark, table, tell, waiting
from cli.packages import need_node
from fl.client.errors import Unverified

directory_argument = click.argument(
    "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("localnet")
)
names_argument = click.argument("names", nargs=-1)


@click.group()
def localnet() -> None:
    """A chain of several validators on this machine.

    Each is a process of its own on the loopback interface, in a directory of its own. Keys are not encrypted: use it
    to try things out, never for data that matters.
    """


@localnet.command()
@directory_argument
@click.option("--validators", type=click.IntRange(1, MOST_VALIDATORS), default=4, show_default=True)
@click.option("--trainers", type=click.IntRange(0, MOST_TRAINERS), default=0, show_default=True)
@click.option("--evaluators", type=click.IntRange(0, MOST_TRAINERS), default=0, show_default=True)
@click.option("--name", default="localnet", show_default=True, help="Of the chain.")
@click.option("--open-admission", is_flag=True, help="Let anyone register as a member.")
@click.option("--containers", is_flag=True, help="Name validators by host, as docker-compose.yml does.")
@click.option("--if-missing", is_flag=True, help="Do nothing if there is a network already.")
@reading
def init(
    directory: Path,
    validators: int,
    trainers: int,
    evaluators: int,
    name: str,
    open_admission: bool,
    containers: bool,
    if_missing: bool,
) -> None:
    """Make keys, a genesis and a configuration for each validator in DIRECTORY."""
    need_node()
    if if_missing and (directory / "localnet.json").exists():
        network = LocalNetwork.open(directory)
        line(f"There is a network in {directory} already.")
    else:
        remark("Keys are not encrypted (insecure-no-passphrase): this is for local networks only.")
        plan = Plan(validators, trainers, name, containers, open_admission, Params(), evaluators, audited=True)
        with explained():
            network = LocalNetwork.create(directory, plan)
    faulty = (len(network.members) - 1) // 3
    summary = {
        "directory": str(directory),
        "chain_id": network.chain_id,
        "n": len(network.members),
        "f": faulty,
        "q": len(network.members) - faulty,
        "trainers": len(network.trainers),
        "network_file": str(network.network_file),
    }

    def show() -> None:
        fields(summary)
        may = f"any {faulty} of them may crash or lie" if faulty else "none of them may fail"
        line(f"{len(network.members)} validators: {may}, and {summary['q']} have to agree.")
        line(f"Start them: {'docker compose up' if containers else f'quorate localnet up {directory}'}")

    tell(summary, show)


@localnet.command()
@directory_argument
@names_argument
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds until all must be ready.")
@reading
def up(directory: Path, names: tuple[str, ...], timeout_s: float) -> None:
    """Start the validators (all, or those NAMED) that do not run, and wait until they are ready."""
    network = LocalNetwork.open(directory)
    need_node()
    chosen = names or tuple(network.members)
    with waiting("Compiling, if that was not done on this machine"):
        compile_kernels()
    for name in chosen:
        network.start(name)
    with waiting("Starting") as say:
        network.wait_ready(chosen, timeout_s, say)
    data = _members(network)

    def show() -> None:
        _draw(data)
        line(f"Clients use {network.network_file}. To have a name for it:")
        key = network.key_file("creator")
        line(f"  quorate network add {network.directory.resolve().name} {network.network_file} --key {key} --use")

    tell(data, show)


@localnet.command()
@directory_argument
@reading
def status(directory: Path) -> None:
    """Show how far each validator is, and whether they agree."""
    network = LocalNetwork.open(directory)
    data = _members(network)
    roots = {(each["executed_height"], each["state_root"]) for each in data if each["state_root"]}
    differ = len(roots) != len({height for height, _ in roots})

    if differ:
        if not json_wanted():
            _draw(data)
        raise Unverified(
            "STATES_DIFFER",
            "At the same height validators have different states.",
            "This is a fault: stop them, and keep their directories.",
        )
    tell({"chain_id": network.chain_id, "agree": True, "validators": data}, lambda: _draw(data))


def _members(network: LocalNetwork) -> list[dict[str, Any]]:
    rows = []
    for name, member in network.members.items():
        runs = network.running(name)
        found = network.status(name) if runs else None
        said = found or {}
        rows.append(
            {
                "name": name,
                "running": runs,
                "answers": found is not None,
                "pid": member.pid if runs else None,
                "rpc": member.rpc,
                "final_height": said.get("final_height"),
                "executed_height": said.get("executed_height"),
                "certified_height": said.get("certified_height"),
                "state_root": said.get("state_root"),
                "linked": sum(bool(each.get("linked")) for each in said.get("peers", [])) if said else None,
                "syncing": progress(said) if said else None,
            }
        )
    return rows


def _draw(rows: list[dict[str, Any]]) -> None:
    table(
        ("NAME", "STATE", "PID", "RPC", "FINAL", "EXECUTED", "CERTIFIED", "LINKED", "SYNCING", "STATE ROOT"),
        [
            (
                row["name"],
                "up" if row["answers"] else "starting" if row["running"] else "down",
                row["pid"],
                row["rpc"],
                row["final_height"],
                row["executed_height"],
                row["certified_height"],
                row["linked"],
                row["syncing"],
                (row["state_root"] or "")[:16],
            )
            for row in rows
        ],
        spare=("PID", "STATE ROOT", "EXECUTED", "FINAL", "SYNCING"),
    )


@localnet.command()
@directory_argument
@names_argument
@click.option("--now", is_flag=True, help="SIGKILL at once, as a crash does.")
@reading
def down(directory: Path, names: tuple[str, ...], now: bool) -> None:
    """Stop the validators (all, or those NAMED): SIGTERM, and SIGKILL for whoever does not end.

    Only processes that this network started are ever signalled.
    """
    network = LocalNetwork.open(directory)
    chosen = names or tuple(network.members)
    for name in chosen:
        network.member(name)
    if now:
        ended = {name: "killed" if network.running(name) else "was not running" for name in chosen}
        for name in chosen:
            network.kill(name)
    else:
        with waiting("Stopping"):
            ended = network.stop(chosen)
    tell(ended, lambda: table(("NAME", "ENDED"), list(ended.items())))
