"""`quorate verify`: a round again, from what is recorded of it, with nothing taken on trust."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from cli.auditing import (
    archive_option,
    keep_option,
    looking,
    report_data,
    threads,
    with_archives,
)
from cli.client import Client, client_options
from cli.output import Exit, envelope, json_wanted, line, reading
from cli.packages import need_kernels

if TYPE_CHECKING:
    from fl.audit.steps import Step
    from fl.client.audit.roundaudit import RoundAudit
    from fl.client.audit.verify import Report
    from fl.client.network import AsyncNetwork


@click.command()
@click.argument("job")
@click.argument("number", metavar="ROUND", type=click.IntRange(1))
@archive_option
@keep_option
@client_options
@reading
def verify(client: Client, job: str, number: int, archives: tuple[str, ...], kept: bool) -> None:
    """Verify what ROUND of JOB came to, from the network file on.

    Its record is proven, its log rebuilt, every transaction's signature and weight checked, every payload hashed; then
    the updates are aggregated again, and the model, the optimiser's state and the closing record are compared with
    what the validators have certified. A line for each step. Exit code 6 if one failed, 3 if something could not be
    had: updates are kept for some rounds only, and are given to auditors and operators, and to their members.
    """
    need_kernels()
    with looking(f"Round {number}") as progress, threads() as spread:

        async def work(network: AsyncNetwork) -> Report:
            from fl.audit.recompute import verified
            from fl.client.audit.roundaudit import RoundAudit
            from fl.client.audit.verify import verify_round

            def recompute(audit: RoundAudit) -> Iterator[Step]:
                keep = audit.recordings.keep
                return verified(audit.recorded(), audit.record, keep, spread, partial(progress, "add"))

            with_archives(network, archives)
            audit = RoundAudit(network, job, number, progress)
            report = await verify_round(audit, recompute, progress.tell)
            if report.verified and not kept:
                audit.recordings.clear()
            return report

        report = client.run(work)
    _conclude(report, job, number)


def _conclude(report: Report, job: str, number: int) -> None:
    from fl.audit.steps import Verdict

    if (failed := report.first(Verdict.FAILED)) is not None:
        code, word = Exit.UNVERIFIED, "NOT_VERIFIED"
        says = f"Round {number} of {job} is not what its record says: {failed.name} failed."
        todo = "Show it to the members: no honest quorum signs such a round, and no honest node tells it."
    elif (missing := report.first(Verdict.MISSING)) is not None:
        code, word = Exit.UNREACHABLE, "INCOMPLETE"
        says = f"Round {number} of {job} is not verified to its end: {missing.name} could not be looked at."
        todo = missing.sentence
    else:
        code, word = Exit.OK, ""
        says, todo = f"Round {number} of {job} is verified.", ""
    data = {"job": job, "round": number, **report_data(report)}
    if json_wanted() and code == Exit.OK:
        click.echo(envelope(data))
    elif json_wanted():
        fault = {"code": word, "message": says, "advice": todo, "exit_code": int(code)}
        click.echo(envelope({**fault, **data}, "error"))
    else:
        line(says)
        for each in report.rests if code == Exit.OK else ():
            line(f"It rests on the certified state {each}.")
    click.get_current_context().exit(code)
