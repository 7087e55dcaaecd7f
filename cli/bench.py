"""`quorate bench`: measure the product on this machine. The suite itself is `benchmarks/`, in a checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from cli.explain import explained
from cli.output import Manner, line, on_terminal, reading, remark, table, tell, waiting
from cli.packages import need, need_node
from cli.trainers import orderly_end
from fl.client.errors import BadInput, Unverified

_ENVELOPE = "-"
"""What `--json` is without a file."""

report_argument = click.Path(path_type=Path, dir_okay=False)


class Bench(click.Group):
    """`quorate bench small` is `quorate bench run small`."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments[0] in self.commands or arguments[0].startswith("-"):
            return super().resolve_command(context, arguments)
        return "run", self.commands["run"], arguments


def need_suite() -> None:
    """Raises BadInput where only the program is installed."""
    house = Path(__file__).resolve().parent.parent
    if (house / "benchmarks" / "suite.py").exists() and str(house) not in sys.path:
        sys.path.append(str(house))
    if find_spec("benchmarks") is None:
        what = "The benchmarks are not installed with the program: they come with its source."
        raise BadInput("NO_BENCHMARKS", what, "Clone the repository, and run `make bench` there.")


def _into_file(context: click.Context, _: click.Parameter, value: str | None) -> Path | None:
    context.ensure_object(Manner).json |= value == _ENVELOPE
    return Path(value) if value not in (None, _ENVELOPE) else None


def _setting(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for each in values:
        if "=" not in each:
            raise click.BadParameter(f"it must be NAME=VALUE, as in validators=7, not {each!r}")
    return {name: value for name, _, value in (each.partition("=") for each in values)}


@click.group(cls=Bench, invoke_without_command=True, subcommand_metavar="SCENARIO | compare OLD NEW")
@click.option("--list", "listing", is_flag=True, help="Say which scenarios there are.")
@reading
@click.pass_context
def bench(context: click.Context, listing: bool) -> None:
    """Measure the product on this machine: validators and load are real processes, figures come with their spread.

    Other work on the machine moves every figure of time; processor time it moves least.
    """
    if listing:
        _list()
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _list() -> None:
    need_suite()
    from benchmarks.scenarios import scenarios

    found = [
        {
            "name": each.name,
            "about": each.about,
            "minutes": each.minutes,
            "settings": {name: setting.usual for name, setting in each.settings.items()},
        }
        for each in scenarios().values()
    ]
    tell(found, lambda: table(("SCENARIO", "MINUTES", "WHAT"), [(e["name"], e["minutes"], e["about"]) for e in found]))


@bench.command()
@click.argument("scenario")
@click.option(
    "--json",
    "file",
    is_flag=False,
    flag_value=_ENVELOPE,
    is_eager=True,
    callback=_into_file,
    metavar="[FILE]",
    help="Write the report there; without a file, answer with it.",
)
@click.option("--markdown", type=report_argument, help="Write its table there.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Draw its curves there.")
@click.option("--set", "given", multiple=True, callback=_setting, metavar="NAME=VALUE", help="Another setting.")
@click.option("--quick", is_flag=True, help="The shortest form, to see that it runs; its figures mean little.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="On the disk that validators write to; else where temporary files are.",
)
def run(
    scenario: str,
    file: Path | None,
    markdown: Path | None,
    plots: Path | None,
    given: Mapping[str, str],
    quick: bool,
    directory: Path | None,
) -> None:
    """Perform a scenario: `quorate bench small`. `quorate bench --list` says which there are.

    It fails if something that has to hold does not, such as that no acknowledged update is lost.
    """
    need_suite()
    need_node()
    if plots is not None:
        need("matplotlib")
    from benchmarks.report import markdown as as_markdown
    from benchmarks.suite import perform

    with explained(), orderly_end(), waiting(scenario) as say:
        report = perform(scenario, quick, given, directory, say)
    if file is not None:
        _write(file, json.dumps(report, indent=1) + "\n")
    if markdown is not None:
        _write(markdown, as_markdown(report))
    if plots is not None:
        from benchmarks.plots import draw

        for picture in draw(report, plots):
            remark(str(picture))
    tell(report, lambda: _show(report))
    broken = [check["what"] for case in report["cases"] for check in case["checks"] if not check["holds"]]
    if broken:
        raise Unverified("BENCH_BROKEN", f"This does not hold: {'; '.join(broken)}.", "This is a fault: look into it.")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise BadInput("UNWRITABLE", f"{file} cannot be written: {error.strerror}.", "Name another file.") from error


def _show(report: Mapping[str, Any]) -> None:
    from benchmarks.report import COLUMNS, rows

    columns = tuple(name.upper() for name in COLUMNS)
    table(columns, list(rows(report)), only_telling=True)
    for case in report["cases"]:
        for check in case["checks"]:
            _tell_check(case["name"], check["what"], check["holds"])


def _tell_check(case: str, what: str, holds: bool) -> None:
    if on_terminal():
        mark = click.style("✓", fg="green") if holds else click.style("✗", fg="red")
    else:
        mark = "ok" if holds else "FAILED"
    line(f"{mark} {case}: {what}")


@bench.command()
@click.argument("old", type=report_argument)
@click.argument("new", type=report_argument)
@reading
def compare(old: Path, new: Path) -> None:
    """Two reports of one scenario: each figure's ratio, and whether it is beyond their spread."""
    need_suite()
    from benchmarks.compare import COLUMNS, compared, remarks
    from benchmarks.report import read_report

    reports = read_report(old), read_report(new)
    found = compared(*reports)
    for each in remarks(*reports):
        remark(each)
    tell(
        [each.data() for each in found],
        lambda: table(COLUMNS, [each.cells() for each in found], only_telling=True),
    )
