"""`quorate policy`: what this site admits, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.output import Exit, envelope, json_wanted, line, reading, table, tell, tell_text

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.site.policy import Ruling


@click.group()
def policy() -> None:
    """What this site admits, whoever asks: a file that no job can override."""


@policy.command()
@reading
def template() -> None:
    """Print a policy file in which everything is explained and nothing is forbidden yet."""
    from fl.client.site.policy import TEMPLATE

    tell_text(TEMPLATE)


@policy.command()
@click.argument("job")
@click.option("--role", type=click.Choice(("trainer", "evaluator")), default="trainer", show_default=True)
@click.option("--policy", "file", type=FILE, help="[default: QUORATE_POLICY, or policy.toml in the home]")
@client_options
@reading
def check(client: Client, job: str, role: str, file: Path | None) -> None:
    """Hold JOB to the policy, rule by rule. Exit code 7 if it forbids the job."""
    from fl.client.site.policy import read_policy

    async def work(network: AsyncNetwork) -> tuple[str, list[Ruling], float]:
        site = read_policy(file) if file is not None else network.policy.read()
        found = await network.job(job)
        rulings = list(site.rulings(found.rules, creator=(await found.status()).creator, role=role))
        return site.source, rulings, site.wait_s(network.policy.now())

    source, rulings, wait_s = client.run(work)
    forbidden = [each for each in rulings if each.complaint]
    rows = [{"rule": each.rule, "code": each.code, "complaint": each.complaint or None} for each in rulings]
    data = {"policy": source, "admitted": not forbidden, "rulings": rows, "hours_in_s": wait_s}
    if forbidden and json_wanted():
        fault = {"code": forbidden[0].code, "message": f"{source} forbids {job}.", "advice": "See the rulings."}
        click.echo(envelope({**fault, "exit_code": int(Exit.FORBIDDEN), **data}, "error"))
    else:
        shown = [("FAIL" if each.complaint else "OK", each.rule, each.complaint) for each in rulings]
        tell(data, lambda: table(("STATE", "RULE", "THE JOB"), shown))
        line(f"{source} {'forbids' if forbidden else 'admits'} {job}.")
    if forbidden:
        click.get_current_context().exit(Exit.FORBIDDEN)
