"""`quorate preflight`: whether this machine and this account can take part, and what to do where they cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.output import Exit, envelope, json_wanted, line, on_terminal, reading, table, tell

if TYPE_CHECKING:
    from fl.client.site.findings import Check

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@click.argument("job", required=False)
@click.option(
    "--role", type=click.Choice(("trainer", "evaluator")), default="trainer", show_default=True, help="In the job."
)
@click.option("--accept", help="Hash of the rules that were agreed on.")
@click.option("--dataset", help="The own one that the job is to be joined with, by name or id.")
@click.option("--policy", type=FILE, help="The site's policy.  [default: QUORATE_POLICY, or policy.toml in the home]")
@click.option("--account", help="If it is not named after the key: once keys have been rotated.")
@client_options
@reading
def preflight(
    client: Client,
    job: str | None,
    role: str,
    accept: str | None,
    dataset: str | None,
    policy: Path | None,
    account: str | None,
) -> None:
    """Look at what taking part needs, in JOB if one is named, and change nothing.

    The network file, the key, the home and its disk, the clock, every node, versions, the membership, the job, its code
    and what the chain would answer to joining it, the site's policy. Each check is a line: OK, WARN or FAIL, what was
    found and what to do. Exit code 0 if none is FAIL.
    """
    from fl.client.home import default_root
    from fl.client.signing import parsed_account
    from fl.client.site.findings import PATIENCE_S, Given
    from fl.client.site.policy import policy_file
    from fl.client.site.preflight import preflight as looked
    from fl.kernels import KERNEL_VERSION

    home = client.home if client.home is not None else default_root()
    given = Given(
        network=client.network,
        key=client.key,
        passphrase=client.secret() if client.passphrase is not None else None,
        home=home,
        policy=policy_file(policy, home),
        job=job,
        account=parsed_account(account) if account is not None else None,
        role=role,
        accept=accept,
        dataset=dataset,
        kernel_version=KERNEL_VERSION,
        patience_s=min(client.patience_s, PATIENCE_S),
    )
    checks = asyncio.run(looked(given))
    _conclude(checks)


def _conclude(checks: Sequence[Check]) -> None:
    count = {state: sum(each.state == state for each in checks) for state in ("OK", "WARN", "FAIL")}
    rows = [
        {"name": each.name, "state": each.state.value, "found": each.found, "todo": each.todo or None}
        for each in checks
    ]
    data = {"checks": rows, "failed": count["FAIL"], "warned": count["WARN"]}
    says = f"{count['FAIL']} of {len(checks)} checks failed" if count["FAIL"] else "Nothing stands in the way"
    if count["FAIL"] and json_wanted():
        fault = {"code": "NOT_READY", "message": f"{says}.", "advice": "See the checks that are FAIL."}
        click.echo(envelope({**fault, "exit_code": int(Exit.FAILED), **data}, "error"))
    else:
        tell(data, lambda: _show(checks, f"{says}; {count['WARN']} to be looked at."))
    if count["FAIL"]:
        click.get_current_context().exit(Exit.FAILED)


def _show(checks: Sequence[Check], says: str) -> None:
    if not on_terminal():
        table(("STATE", "CHECK", "FOUND", "TODO"), [(each.state, each.name, each.found, each.todo) for each in checks])
        return
    width = max(len(each.name) for each in checks)
    for each in checks:
        state = click.style(f"{each.state.value:<4}", fg=_COLOURS[each.state.value], bold=True)
        line(f"{state}  {each.name:<{width}}  {each.found}")
        if each.todo:
            line(f"{'':<{width + 8}}{each.todo}")
    line(says)
