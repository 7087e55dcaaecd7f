"""`quorate demo`: four validators agree and eight trainers learn to read digits, with a crash in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.demonstration import Audience, Outcome, Row, Script, perform
from cli.explain import explained
from cli.output import console, envelope, json_wanted, line, on_terminal, reading, remark, rich_table, tell
from cli.packages import need_node
from cli.trainers import orderly_end
from fl.client.errors import QuorateError

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("ROUND", "ACCURACY", "ON CHAIN", "LOSS", "UPDATES", "FINALITY", "HEIGHT")


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-run"),
    show_default=True,
    help="For everything it writes; an earlier demonstration there is replaced.",
)
@click.option("--rounds", type=click.IntRange(2, 1000), default=10, show_default=True)
@click.option("--trainers", type=click.IntRange(2, 64), default=8, show_default=True)
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds until it is given up.")
@reading
def demo(directory: Path, rounds: int, trainers: int, timeout_s: float) -> None:
    """Four validators and eight trainers learn to read digits.

    Each is a process of its own. Trainers hold uneven shares of scikit-learn's digits, which never leave them; what
    they submit are updates of a small network. In the middle one validator is killed with SIGKILL, the training goes
    on, the validator is started again and catches up. The command succeeds only if all of that held, and the model is
    about as good as one that was trained on all data in one place.

    Accuracy is measured on pictures that no trainer saw: here, and by an evaluator whose answers are on the chain.
    Finality is the median time from signing an update to its proven receipt.
    """
    need_node()
    script = Script(directory, rounds, trainers, timeout_s=timeout_s)
    with explained(), orderly_end(), _stage(script) as audience:
        outcome = perform(script, audience)
    failed = "; ".join(each.what for each in outcome.checks if not each.holds)
    fault = QuorateError("DEMO_FAILED", f"This did not hold: {failed}.", f"Logs and data are in {directory}")
    if json_wanted() and not outcome.holds:
        data = {"code": fault.code, "message": fault.what, "advice": fault.todo, "exit_code": fault.exit_code}
        click.echo(envelope({**data, **_data(outcome, directory)}, "error"))
        click.get_current_context().exit(fault.exit_code)
    tell(_data(outcome, directory), lambda: _summary(outcome, directory))
    if not outcome.holds:
        raise fault


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.round) if row.closed else f"{row.round} failed",
        f"{row.accuracy:.1%}",
        "" if row.on_chain is None else f"{row.on_chain:.1%}",
        f"{row.loss:.3f}",
        f"{row.updates} of {row.cohort}",
        "" if row.finality_s is None else f"{row.finality_s:.2f} s",
        str(row.height),
    )


@contextmanager
def _stage(script: Script) -> Iterator[Audience]:
    if not on_terminal():
        yield _plain_stage()
        return
    from rich.console import Group
    from rich.live import Live
    from rich.spinner import Spinner

    rows: list[Row] = []
    below: list[RenderableType] = [spinner := Spinner("dots", "")]

    def drawn() -> RenderableType:
        return Group(rich_table(COLUMNS, [_cells(row) for row in rows]), *below)

    with Live(console=console(), get_renderable=drawn, refresh_per_second=8) as live:

        def show(now: list[Row]) -> None:
            rows[:] = now

        def doing(text: str) -> None:
            spinner.update(text=text)

        def happened(text: str) -> None:
            live.console.print(text)

        try:
            yield Audience(show, doing, happened)
        finally:
            below.clear()


def _plain_stage() -> Audience:
    """One line a round, one an event, and nothing twice."""
    printed: list[int] = []

    def show(rows: list[Row]) -> None:
        if rows and not printed:
            line("\t".join(COLUMNS))
        for row in rows:
            if row.round not in printed:
                printed.append(row.round)
                line("\t".join(_cells(row)))

    said = [""]

    def doing(text: str) -> None:
        what = text.partition(":")[0]
        if what not in said and not what.startswith("Round"):
            said.append(what)
            remark(what)

    return Audience(show, doing, line)


def _summary(outcome: Outcome, directory: Path) -> None:
    line()
    for each in outcome.checks:
        if on_terminal():
            mark = click.style("✓", fg="green") if each.holds else click.style("✗", fg="red")
        else:
            mark = "ok" if each.holds else "FAILED"
        line(f"{mark} {each.what}")
    line()
    line(f"Accuracy of the final model   {outcome.accuracy:.1%}   (trained centrally: {outcome.central:.1%})")
    line(f"CID of the final model        {outcome.cid}")
    line(f"The model, safetensors        {outcome.model_file}")
    line(f"Logs, receipts, data          {directory}")
    line(f"Took                          {outcome.seconds:.0f} s")


def _data(outcome: Outcome, directory: Path) -> dict[str, Any]:
    return {
        "holds": outcome.holds,
        "chain_id": outcome.chain_id,
        "rounds": [asdict(row) for row in outcome.rows],
        "checks": [asdict(each) for each in outcome.checks],
        "accuracy": outcome.accuracy,
        "central_accuracy": outcome.central,
        "model": outcome.cid,
        "model_file": str(outcome.model_file),
        "directory": str(directory),
        "seconds": round(outcome.seconds, 1),
    }
