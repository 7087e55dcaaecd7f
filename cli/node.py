"""`quorate node`: initialise a validator, run it, look at it, stop it."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.explain import NodeStopped, explained
from cli.http import Place, Reply, ask, fetch, unreachable
from cli.output import console, fields, line, on_terminal, reading, rich_table, table, tell, tell_text, waiting
from cli.packages import need_node
from cli.templates import node_toml
from fl.client.errors import QuorateError, TimedOut
from node.config import Config, load_config

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("node.toml"),
    envvar="QUORATE_CONFIG",
    show_default=True,
    help="The node's configuration.",
)
url_option = click.option("--url", help="Ask the node at this URL instead of the one of the configuration.")

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group, as Linux tells who is at the other end of a Unix socket."""

_START = {
    ("node", "data_dir"): "data",
    ("node", "genesis"): "genesis.bin",
    ("node", "keys"): "keys",
    ("links", "listen"): "0.0.0.0:7600",
}


@click.group()
def node() -> None:
    """Run a validator and look after it."""


def _configured(path: Path) -> Config:
    with explained():
        return load_config(path, os.environ)


@node.command()
@reading
def template() -> None:
    """Print a node.toml to edit: every setting, with what it means and its default."""
    tell_text(node_toml(_START, explain=True))


@node.command()
@config_option
@click.option(
    "--rejoin-with-same-key",
    "rejoin",
    is_flag=True,
    help="This validator ran before and its journal is lost: stay silent until it is safe to vote.",
)
@reading
def init(path: Path, rejoin: bool) -> None:
    """Make the data directory of a validator.

    Never run a key from two directories. If this key has ever voted, bring its directory back; only if its journal is
    lost for good use --rejoin-with-same-key. A chain of fewer than four validators cannot take anyone back that way.
    """
    need_node()
    config = _configured(path)
    from node.process import initialise

    with explained():
        identity = initialise(config, rejoin=rejoin)
    chain_id = identity.genesis.chain_id.hex()
    data = {"name": identity.name, "chain_id": chain_id, "directory": str(config.node.data_dir), "rejoins": rejoin}
    silent = "It will be silent until the others have told it how far it may have voted."

    def show() -> None:
        line(f"{config.node.data_dir} is ready for {identity.name} of chain {chain_id}.")
        line(silent if rejoin else "Start the node.")

    tell(data, show)


@node.command()
@config_option
@reading
def start(path: Path) -> None:
    """Run the validator until it is stopped: by `quorate node stop`, SIGTERM or SIGINT."""
    need_node()
    config = _configured(path)
    from node.logs import logging_to
    from node.node import NodeFailure
    from node.process import run

    with logging_to(None, config.log.level, config.log.format), explained():
        try:
            run(config)
        except NodeFailure as failure:
            raise NodeStopped(failure.code, str(failure)) from failure


def _place(path: Path, url: str | None) -> tuple[Place, str]:
    """Where to ask, and the path of the status there."""
    if url is not None:
        return Place(url=url), "/v1/status"
    return Place(socket=_configured(path).admin_socket), "/v1/admin/status"


@node.command()
@config_option
@url_option
@click.option("-w", "--watch", is_flag=True, help="Go on showing it, every second.")
@reading
def status(path: Path, url: str | None, watch: bool) -> None:
    """Show how far the node is, whom it is linked to, and how long it will take to catch up."""
    place, where = _place(path, url)
    first = fetch(place, where)
    if not watch:
        tell(first, lambda: _show(first))
        return
    # Ctrl-C is how this view is meant to end.
    with suppress(KeyboardInterrupt):
        if on_terminal():
            _watch_on_terminal(place, where, first)
        for data in _statuses(place, where, first):
            tell(data, partial(click.echo, _one_line(data)))


def _statuses(place: Place, where: str, first: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield first
    while True:
        time.sleep(1.0)
        yield fetch(place, where)


def _watch_on_terminal(place: Place, where: str, first: dict[str, Any]) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console(), auto_refresh=False) as live:
        for data in _statuses(place, where, first):
            rows = [[name, "" if value is None else str(value)] for name, value in _facts(data).items()]
            live.update(
                Group(
                    rich_table(("NODE", str(data.get("node", ""))), rows),
                    rich_table(("PEER", "LINKED"), _peers(data)),
                    Text("Ctrl-C ends this view, not the node.", style="dim"),
                ),
                refresh=True,
            )


def _show(data: dict[str, Any]) -> None:
    fields(_facts(data))
    if _peers(data):
        line()
        table(("PEER", "LINKED"), _peers(data))


def _facts(data: dict[str, Any]) -> dict[str, object]:
    validators = data.get("validators") or {}
    sizes = " ".join(f"{name}={validators[name]}" for name in ("n", "f", "q") if name in validators)
    return {
        "chain": f"{data.get('name', '')} {data.get('chain_id', '')}",
        "version": data.get("version"),
        "epoch": data.get("epoch"),
        "validators": sizes,
        "view": data.get("view"),
        "final height": data.get("final_height"),
        "executed height": data.get("executed_height"),
        "certified height": data.get("certified_height"),
        "state root": data.get("state_root"),
        "catching up": progress(data),
        "blobs": _blobs(data.get("data") or {}),
        "ready": "yes" if data.get("ready") else f"no: {', '.join(data.get('reasons', []))}",
        "up for": _span(data.get("uptime_s")),
    }


def progress(data: dict[str, Any]) -> str:
    """How far behind a node is, and how long that will take."""
    syncing = data.get("syncing") or {}
    behind = syncing.get("behind") or 0
    if not behind:
        return "no"
    eta = syncing.get("eta_s")
    target = syncing.get("target")
    done = f" ({100 * (target - behind) // target} %)" if target else ""
    return f"{behind} blocks behind {target}{done}, " + (f"{_span(eta)} to go" if eta is not None else "measuring")


def _blobs(data: dict[str, Any]) -> str:
    """Of the process that keeps them."""
    if not data.get("up"):
        return "the data process is not up; it is being started"
    return f"{data.get('door') or ''}{', no room for more' if data.get('full') else ''}".strip(", ")


def _peers(data: dict[str, Any]) -> list[list[str]]:
    return [[str(each.get("name", "")), "yes" if each.get("linked") else "no"] for each in data.get("peers", [])]


def _one_line(data: dict[str, Any]) -> str:
    linked = sum(row[1] == "yes" for row in _peers(data))
    return (
        f"final={data.get('final_height')} executed={data.get('executed_height')} "
        f"certified={data.get('certified_height')} view={data.get('view')} linked={linked} syncing={progress(data)}"
    )


def _span(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return ""
    whole = int(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole / size:.1f} {unit}"
    return f"{whole} s"


@node.command()
@config_option
@url_option
@reading
def ready(path: Path, url: str | None) -> None:
    """Say whether clients may be sent to this node: exit code 0 if so, 1 with the reason if not, 3 without answer."""
    place = Place(url=url or _local_url(_configured(path)))
    reply = ask(place, "GET", "/v1/ready", timeout_s=5.0)
    if reply.status != 200:
        raise QuorateError(str(reply.data.get("code", "NOT_READY")), reply.problem, "See `quorate node status`.")
    tell({"ready": True}, lambda: click.echo("ready"))


def _local_url(config: Config) -> str:
    listen = config.rpc.listen
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    scheme = "http" if config.rpc.tls_cert is None else "https"
    return f"{scheme}://{listen._replace(host=local)}"


@node.command()
@config_option
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds to wait.")
@reading
def drain(path: Path, timeout_s: float) -> None:
    """Take no more transactions and wait until every accepted one is final. The node goes on validating."""
    place = Place(socket=_configured(path).admin_socket)
    with waiting("Draining"):
        reply = ask(place, "POST", "/v1/admin/drain", {"timeout_s": timeout_s}, timeout_s=timeout_s + 10)
    _demand(reply)
    if not reply.data.get("drained", False):
        raise TimedOut(
            "NOT_DRAINED",
            f"After {timeout_s:g} s there are still transactions of this node that are not final.",
            "They are safe once `available`; wait longer, or stop the node anyway.",
        )
    tell(reply.data, lambda: click.echo("drained: nothing is on its way, nothing more is taken until a restart"))


@node.command()
@config_option
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for its end.")
@click.option("--now", is_flag=True, help="Do not wait for accepted transactions to become final.")
@reading
def stop(path: Path, timeout_s: float, now: bool) -> None:
    """Stop the node in good order, and return once it is gone.

    It takes no more transactions and waits for those it accepted, at most as long as its configuration says.
    """
    config = _configured(path)
    place, drain_s = Place(socket=config.admin_socket), config.node.drain_ms / 1000
    with waiting("Stopping"), _process_behind(config.admin_socket) as ended:
        if not now:
            _demand(ask(place, "POST", "/v1/admin/drain", {"timeout_s": drain_s}, timeout_s=drain_s + 10))
        _demand(ask(place, "POST", "/v1/admin/stop"))
        if not ended(timeout_s):
            raise TimedOut("NOT_STOPPED", f"The node still runs after {timeout_s:g} s.", "Look at its log.")
    tell({"stopped": True}, lambda: line("stopped"))


@contextmanager
def _process_behind(path: Path) -> Iterator[Callable[[float], bool]]:
    """Waits for the end of the process that listens there: whether it came within so many seconds."""
    with unreachable(Place(socket=path)), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process = os.pidfd_open(_CREDENTIALS.unpack(credentials)[0])
    try:
        end = select.poll()
        end.register(process, select.POLLIN)
        yield lambda timeout_s: bool(end.poll(timeout_s * 1000))
    finally:
        os.close(process)


def _demand(reply: Reply) -> None:
    if reply.status >= 400:
        code = str(reply.data.get("code", f"HTTP_{reply.status}"))
        raise QuorateError(code, reply.problem, "Look at the node's log.")
