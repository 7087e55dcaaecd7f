"""What the commands of clients share: whom they ask, in whose name, and files that they write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.http import Place, fetch
from cli.output import F
from fl.client.errors import BadFile, QuorateError, Unreachable
from fl.client.networkfile import NETWORK_FILE, read_network

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from numpy.typing import NDArray

    from chain.unixfs import Buffer
    from fl.client.network import AsyncNetwork
    from fl.client.networks import Chosen

T = TypeVar("T")

FILE = click.Path(path_type=Path, dir_okay=False)
PAGE = 100


@dataclass(frozen=True, slots=True)
class Client:
    """Which network, and in whose name."""

    given: str | None
    """A network's file or name; None: the usual one."""
    named_key: Path | None
    passphrase: str | None
    home: Path | None
    patience_s: float

    @property
    def chosen(self) -> Chosen:
        from fl.client.networks import Networks

        return Networks(self.home).choose(self.given)

    @property
    def network(self) -> Path:
        return self.chosen.file

    @property
    def key(self) -> Path | None:
        return self.named_key if self.named_key is not None else self.chosen.key

    def run(self, work: Callable[[AsyncNetwork], Coroutine[Any, Any, T]]) -> T:
        """Connected, with everything that it reads proven from the network file on."""
        import asyncio

        from fl.client.network import connect_async

        secret = self.secret()

        async def connected() -> T:
            network = await connect_async(
                self.network, self.key, passphrase=secret, home=self.home, patience_s=self.patience_s
            )
            async with network:
                return await work(network)

        return asyncio.run(connected())

    def secret(self) -> bytes | None:
        from fl.client.keyfile import is_encrypted, read_passphrase

        key = self.key
        if key is None or (self.passphrase is None and not is_encrypted(key)):
            return None
        return read_passphrase(self.passphrase or "prompt")

    def ask_each(self, path: str) -> Iterator[dict[str, Any]]:
        """From one node after the other, unproven: for what is on its way, of which some know more than others. Raises
        what is wrong if none has an answer."""
        failure: QuorateError | None = None
        answered = False
        for member in read_network(self.network).validators.members:
            if not member.rpc:
                continue
            try:
                found = fetch(Place(member.rpc), path, timeout_s=5.0)
            except QuorateError as error:
                # A node's own word says more than the silence of another.
                if failure is None or not isinstance(error, Unreachable):
                    failure = error
                continue
            answered = True
            yield found
        if not answered:
            raise failure or BadFile(
                "NO_ADDRESSES", f"{self.network} names no node that answers clients.", "Get another."
            )

    def pages(self, path: str, name: str, *, dated: bool = True) -> list[dict[str, Any]]:
        """All of a list, unproven, from a node that is as far as the newest state that is proven here: so the list
        says, if it is `dated`, and else the node proves it before."""
        from fl.client.nodes import Behind, Node, Reply, Request, Unusable

        async def work(network: AsyncNetwork) -> list[dict[str, Any]]:
            newest = await network.head()

            def read(reply: Reply) -> tuple[list[dict[str, Any]], str | None]:
                page = reply.fields()
                rows, following, height = page.get(name), page.get("next"), page.get("height") if dated else newest
                if not (isinstance(rows, list) and isinstance(following, str | None) and isinstance(height, int)):
                    raise Unusable("no page of a list")
                if height < newest:
                    raise Behind(f"its list is of height {height}, and {newest} is proven")
                return rows, following

            async def all_of(node: Node) -> list[dict[str, Any]]:
                if not dated and (reached := (await network.reader.head_of(node)).height) < newest:
                    raise Behind(f"its head is of height {reached}, and {newest} is proven")
                found: list[dict[str, Any]] = []
                query = {"limit": str(PAGE)}
                while True:
                    rows, following = await network.nodes.ask_one(node, Request("GET", path, query), read)
                    found += rows
                    if following is None:
                        return found
                    query["cursor"] = following

            return await network.nodes.ask_in_turn(path, all_of)

        return self.run(work)


def complete_network(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """In a shell: the names there are, else files."""
    from click.shell_completion import CompletionItem

    from fl.client.networks import Networks

    known = [CompletionItem(each) for each in Networks().names() if each.startswith(incomplete)]
    return known or [CompletionItem(incomplete, type="file")]


def client_options(command: F) -> F:
    """Adds the options and hands the command a `Client` as its first argument."""

    def called(
        network: str | None, key: Path | None, passphrase: str | None, home: Path | None, patience_s: float, **rest: Any
    ) -> Any:
        return command(Client(network, key, passphrase, home, patience_s), **rest)

    options = (
        click.option(
            "--network",
            metavar="FILE|NAME",
            shell_complete=complete_network,
            envvar="QUORATE_NETWORK",
            help=f"Which one.  [default: the one that `network use` chose, else {NETWORK_FILE}]",
        ),
        click.option(
            "--key",
            type=FILE,
            envvar="QUORATE_KEY",
            help="Key file of the account that acts.  [default: the network's, if it has a name]",
        ),
        click.option(
            "--passphrase", envvar="QUORATE_PASSPHRASE_FROM", help="Of the key: prompt, file:PATH or credential:NAME."
        ),
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            envvar="QUORATE_HOME",
            help="For receipts and what is in flight.  [default: ~/.quorate]",
        ),
        click.option("--patience", "patience_s", default=30.0, show_default=True, help="Seconds to keep asking."),
    )
    made: Any = update_wrapper(called, command)
    for option in reversed(options):
        made = option(made)
    result: F = made
    return result


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As .npz."""
    import numpy as np

    with _written(path):
        plain: dict[str, Any] = dict(arrays)
        with open(path, "wb") as file:
            np.savez(file, **plain)


def copy_file(source: Path, path: Path) -> None:
    """A model's safetensors file, byte for byte as the chain names it."""
    with _written(path):
        shutil.copyfile(source, path)


def write_blob(path: Path, blob: Buffer) -> None:
    with _written(path):
        path.write_bytes(blob)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from error
