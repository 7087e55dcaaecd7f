"""`quorate genesis`: everyone builds the same document from the same claims, and compares its hash."""

from __future__ import annotations

import os
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from pathlib import Path

import click

from chain.codec import encode
from chain.genesis import Claim, Genesis, GenesisMember, Params
from cli.explain import explained
from cli.founding import Founding, found, read_founding, read_genesis, render_founding
from cli.output import fields, line, reading, remark, table, tell, tell_text
from fl.client.errors import BadInput, Unverified
from node.keystore import load_claim

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def genesis() -> None:
    """Build, verify and show the document that a chain starts from.

    Its hash is the chain's id. Each organisation sends its validator.json to the others; private keys never move.
    """


@genesis.command()
@click.option("--name", default="my-chain", show_default=True, help="Name of the chain.")
@reading
def template(name: str) -> None:
    """Print a params.toml to edit: every parameter, with its default."""
    now_ms = int(datetime.now(UTC).timestamp()) * 1000
    example = GenesisMember("alice", bytes(33), ("trainer",))
    text = render_founding(Founding(name, now_ms), every_param=True)
    member = render_founding(Founding(name, now_ms, members=(example,))).partition("[[member]]")
    commented = "".join(f"# {each}\n" for each in (member[1] + member[2]).splitlines())
    tell_text(f"{text}\n{commented}")


@genesis.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("-o", "--output", type=FILE, default=Path("genesis.bin"), show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace the file if it is there and differs.")
@reading
def build(files: tuple[Path, ...], output: Path, force: bool) -> None:
    """Build the genesis from validators' claims and one params.toml.

    \b
    quorate genesis build a.json b.json c.json d.json params.toml

    The same files give the same bytes, in whatever order they are named. Compare the chain id with the others.
    """
    tomls = [file for file in files if file.suffix == ".toml"]
    if len(tomls) != 1:
        raise BadInput("ONE_PARAMS_FILE", f"{len(tomls)} of these files end in .toml.", "Name exactly one params.toml.")
    with explained():
        claims = [load_claim(file) for file in files if file not in tomls]
        document = found(claims, read_founding(tomls[0]))
    _write(output, encode(document), force)
    if document.admission == "registrars" and not document.registrars:
        remark("No registrar is named: nobody can ever be registered beside the members listed here.")
    summary = {**_summary(document), "file": str(output)}

    def show() -> None:
        fields(summary)
        line()
        line("Every member compares the chain id with the others before starting.")

    tell(summary, show)


def _write(path: Path, data: bytes, force: bool) -> None:
    try:
        if path.exists() and path.read_bytes() != data and not force:
            raise BadInput("FILE_EXISTS", f"{path} exists and differs.", "Name another file with -o, or use --force.")
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from error


@genesis.command()
@click.argument("file", type=FILE)
@click.argument("claims", nargs=-1, type=FILE)
@click.option("--chain-id", help="What the others say it is.")
@reading
def verify(file: Path, claims: tuple[Path, ...], chain_id: str | None) -> None:
    """Check a genesis: its form, its keys and parameters, and that these CLAIMS are in it as they were handed in."""
    with explained():
        document = read_genesis(file)
        checked = [_present(document, load_claim(claim), claim) for claim in claims]
    if chain_id is not None and chain_id.lower() != document.chain_id.hex():
        raise Unverified(
            "OTHER_CHAIN",
            f"This is chain {document.chain_id.hex()}, not {chain_id}.",
            "Build it again from the same files as the others, or ask them for theirs.",
        )
    summary = {**_summary(document), "claims": checked}

    def show() -> None:
        fields(_summary(document))
        line(f"It is in order; {len(checked)} claims are in it." if checked else "It is in order.")

    tell(summary, show)


def _present(document: Genesis, claim: Claim, path: Path) -> str:
    sets = (document.validators, *(change.validators for change in document.set_changes))
    if any(claim.validator in members for members in sets):
        return claim.validator.name
    raise Unverified(
        "CLAIM_MISSING",
        f"{path} ({claim.validator.name}) is not in this genesis, or not as it was handed in.",
        "Do not start from it: ask who built it which file they used.",
    )


@genesis.command()
@click.argument("file", type=FILE)
@reading
def show(file: Path) -> None:
    """Show what a genesis says."""
    with explained():
        document = read_genesis(file)
    data = {
        **_summary(document),
        "params": {each.name: getattr(document.params, each.name) for each in fields_of(Params)},
        "validators": [
            {
                "name": each.name,
                "address": each.address,
                "rpc": each.rpc,
                "consensus_key": each.consensus_key.hex(),
                "link_key": each.link_key.hex(),
                "operator_key": each.operator_key.hex(),
            }
            for each in document.validators
        ],
        "set_changes": [
            {"due_height": change.due_height, "validators": [each.name for each in change.validators]}
            for change in document.set_changes
        ],
        "registrars": [key.hex() for key in document.registrars],
        "members": [{"name": each.name, "key": each.key.hex(), "roles": list(each.roles)} for each in document.members],
    }

    def draw() -> None:
        fields(_summary(document))
        line()
        table(
            ("VALIDATOR", "ADDRESS", "RPC", "CONSENSUS KEY"),
            [(each.name, each.address, each.rpc, each.consensus_key.hex()) for each in document.validators],
        )
        for change in document.set_changes:
            line(f"From height {change.due_height}: {', '.join(each.name for each in change.validators)}")
        if document.members:
            table(
                ("MEMBER", "ROLES", "KEY"),
                [(each.name, ", ".join(each.roles), each.key.hex()) for each in document.members],
            )
        standard = Params()
        changed = [
            (each.name, getattr(document.params, each.name), getattr(standard, each.name))
            for each in fields_of(Params)
            if getattr(document.params, each.name) != getattr(standard, each.name)
        ]
        if changed:
            table(("PARAMETER", "VALUE", "DEFAULT"), changed)

    tell(data, draw)


def _summary(document: Genesis) -> dict[str, object]:
    validators = document.validator_set
    moment = datetime.fromtimestamp(document.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "chain_id": document.chain_id.hex(),
        "name": document.name,
        "time": moment.replace("+00:00", "Z"),
        "n": validators.n,
        "f": validators.f,
        "q": validators.quorum,
        "admission": document.admission,
        "members": len(document.members),
    }
