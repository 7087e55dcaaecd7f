"""`quorate member`: who may take part, in which roles, for which organisation."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import Client, client_options
from cli.output import fields, line, on_terminal, reading, table, tell
from fl.client.errors import BadFile, BadInput, RefusedByChain

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt
    from fl.records import Member

_ROLES = ("auditor", "creator", "evaluator", "operator", "trainer", "user")
_KEY_LIMIT_BYTES = 64 * 1024


@click.group()
def member() -> None:
    """Who may take part in jobs, in which roles. Registrars say so; the genesis names them."""


@member.command()
@click.argument("name")
@click.argument("given", metavar="PUBLIC|FILE")
@click.option("--role", "roles", multiple=True, type=click.Choice(_ROLES), help="What the member may do; repeatable.")
@click.option("--organisation", default="", help="Whom it belongs to; without it, it stands for itself.")
@client_options
@reading
def register(client: Client, name: str, given: str, roles: tuple[str, ...], organisation: str) -> None:
    """Register a member NAME, whose account's public key is given, or is in a key file.

    In the name of a registrar. Where the genesis admits anyone, an account may register itself, for no organisation.
    Roles stay as they are until the member is revoked and registered again. `quorate keys public` prints the public key
    of a file; the new member needs to send nothing else.

    \b
    quorate member register alice alice.pub --role trainer --organisation st-mary --key registrar.key
    quorate member register bob 01c0… --role trainer --role evaluator --key registrar.key
    """
    from chain.transaction import account_id
    from fl.members import RegisterMember

    public = _public(given)
    account = account_id(public).hex()

    async def work(network: AsyncNetwork) -> tuple[Receipt, Member | None]:
        receipt = await network.send(RegisterMember(name, public, tuple(sorted(set(roles))), organisation))
        return receipt, await network.member(account)

    receipt, made = client.run(work)
    data = _data(account, made)
    told = ", ".join(sorted(set(roles))) or "no roles"
    tell({**data, "tx": receipt.tx}, lambda: line(f"{name} is a member: {told}; account {account}"))


@member.command("list")
@click.option("--role", type=click.Choice(_ROLES), help="Only those in this role.")
@client_options
@reading
def list_members(client: Client, role: str | None) -> None:
    """List the members, as one node tells them."""
    found = [
        each for each in client.pages("/v1/members", "members", dated=False) if role is None or role in each["roles"]
    ]
    rows = [
        (
            each["name"],
            "revoked" if each["revoked"] else "",
            each["roles"],
            each["organisation"],
            "yes" if each["registrar"] else "",
            each["account"],
        )
        for each in found
    ]
    columns = ("NAME", "STANDING", "ROLES", "ORGANISATION", "REGISTRAR", "ACCOUNT")
    tell(found, lambda: table(columns, rows, only_telling=True))


@member.command()
@click.argument("who", metavar="NAME|ACCOUNT")
@client_options
@reading
def show(client: Client, who: str) -> None:
    """Show a member, proven."""

    async def work(network: AsyncNetwork) -> tuple[str, Member | None]:
        account = await _account(network, who)
        return account, await network.member(account)

    account, found = client.run(work)
    if found is None:
        raise RefusedByChain.of("UNKNOWN_MEMBER", f"There is no member {who}.")
    data = _data(account, found)
    tell(data, lambda: fields(data))


@member.command()
@click.argument("who", metavar="NAME|ACCOUNT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
@reading
def revoke(client: Client, who: str, yes: bool) -> None:
    """Revoke a member: it leaves all jobs, and its name stays its own. In the name of a registrar."""
    from fl.members import RevokeMember

    if not yes:
        if not on_terminal():
            raise BadInput("NOT_CONFIRMED", "A member that is revoked leaves all jobs.", "Say --yes if you mean it.")
        click.confirm(f"Revoke {who}, who then leaves all jobs?", abort=True)

    async def work(network: AsyncNetwork) -> tuple[str, Receipt, Member | None]:
        account = await _account(network, who)
        receipt = await network.send(RevokeMember(bytes.fromhex(account)))
        return account, receipt, await network.member(account)

    account, receipt, found = client.run(work)
    tell({**_data(account, found), "tx": receipt.tx}, lambda: line(f"{who} is revoked; account {account}"))


async def _account(network: AsyncNetwork, who: str) -> str:
    from fl.members import is_name
    from fl.records import Named
    from fl.state import member_name_key

    if len(who) == 64 and not set(who) - set(string.hexdigits):
        return who.lower()
    named = await network.record(Named, member_name_key(who)) if is_name(who) else None
    if named is None:
        raise RefusedByChain.of("UNKNOWN_MEMBER", f"No member is named {who!r} on {network.name}.")
    return named.holder.hex()


def _public(given: str) -> bytes:
    """Of a key file, of a file that holds the digits alone, or the digits."""
    text = given
    if Path(given).is_file():
        with open(given, "rb") as file:
            content = file.read(_KEY_LIMIT_BYTES)
        try:
            found = json.loads(content)
            text = str(found["public"]) if isinstance(found, dict) else content.decode().strip()
        except (ValueError, KeyError, RecursionError):
            text = content.decode(errors="replace").strip()
    from chain.keys import PUBLIC_KEY_BYTES

    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if len(public) != PUBLIC_KEY_BYTES:
        what = f"'{given}' is neither a public key nor a file that holds one."
        raise BadFile("BAD_KEY", what, "Have the member run: quorate keys public FILE")
    return public


def _data(account: str, found: Member | None) -> dict[str, Any]:
    if found is None:
        return {"account": account}
    return {
        "account": account,
        "name": found.name,
        "roles": list(found.roles),
        "organisation": found.organisation or None,
        "revoked": found.revoked,
        "height": found.height,
    }
