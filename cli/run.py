"""`quorate run`: one job file, simulated in this process, on a chain on this machine, or on one that is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, complete_network
from cli.explain import explained
from cli.output import (
    console,
    json_wanted,
    line,
    on_terminal,
    reading,
    remark,
    rich_table,
    running_code,
    tell,
    telling,
    waiting,
)
from cli.packages import need_kernels, need_node
from fl.client.errors import BadInput, QuorateError

if TYPE_CHECKING:
    from cli.participation import Part
    from fl.client.jobfile import JobFile
    from fl.client.report import RoundReport
    from fl.records import JobRules

DIRECTORY = click.Path(path_type=Path, file_okay=False)
MODEL_FILE, METRICS_FILE, CURVES_FILE = "model.safetensors", "metrics.json", "curves.png"
_MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class Ended:
    """What there is to tell once a job is over."""

    status: str
    cid: str
    model: bytes
    took: str


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--simulate", "simulated", type=click.IntRange(1, 10_000), metavar="N", help="In this process: N trainers."
)
@click.option("--localnet", is_flag=True, help="On four validators on this machine, each trainer a process.")
@click.option(
    "--network",
    metavar="FILE|NAME",
    shell_complete=complete_network,
    help="On the chain of this network, in the name of --key.",
)
@click.option("--seed", type=click.IntRange(0), help="Of a simulation, in place of the file's.")
@click.option("--trainers", type=click.IntRange(1, 64), default=4, show_default=True, help="With --localnet.")
@click.option("--directory", type=DIRECTORY, default=Path("run"), show_default=True, help="With --localnet: its files.")
@click.option("--key", type=FILE, envvar="QUORATE_KEY", help="With --network: key file of the account.")
@click.option("--passphrase", envvar="QUORATE_PASSPHRASE_FROM", help="Of the key: prompt, file:PATH, credential:NAME.")
@click.option("--home", type=DIRECTORY, envvar="QUORATE_HOME", help="For receipts and what is in flight.")
@click.option("--part", default="1/1", show_default=True, metavar="I/K", help="With --network: the share of the data.")
@click.option("--accept", help="With --network: hash of the rules that were agreed on; any others are refused.")
@click.option(
    "--wait", "wait_s", default=600.0, show_default=True, help="With --network: seconds until there is a job."
)
@click.option("--out", type=DIRECTORY, help=f"Write {MODEL_FILE}, {METRICS_FILE} and {CURVES_FILE} there.")
@running_code
@reading
def run(
    file: Path,
    simulated: int | None,
    localnet: bool,
    network: str | None,
    seed: int | None,
    trainers: int,
    directory: Path,
    key: Path | None,
    passphrase: str | None,
    home: Path | None,
    part: str,
    accept: str | None,
    wait_s: float,
    out: Path | None,
) -> None:
    """Run the job that FILE describes.

    --simulate N plays it with N trainers in one process: the chain's own state machine and aggregation, in virtual
    time, so that a day of rounds takes seconds. --localnet starts four validators and the trainers on this machine.
    --network takes part in it on a chain: with the role creator the account creates the job and follows it, as a
    trainer it trains on its part of the data, as an evaluator it measures.

    docs/simulation.md lists what a job file says.
    """
    if (simulated is not None) + localnet + (network is not None) != 1:
        raise BadInput("ONE_OF_THREE", "Where is it to run?", "Give one of --simulate N, --localnet and --network.")
    from fl.client.jobfile import read_job_file

    if localnet:
        need_node()
    elif simulated is not None:
        need_kernels()
    job = read_job_file(file)
    if out is not None:
        _prepare(out)
    if simulated is not None:
        _simulate(job, simulated, seed, out)
    elif localnet:
        _on_localnet(job, file, trainers, directory, out)
    else:
        client = Client(network, key, passphrase, home, 30.0)
        _on_network(job, client, part, accept, wait_s, out)


def _prepare(out: Path) -> None:
    from cli.curves import check_drawing

    check_drawing()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("UNWRITABLE", f"{out} cannot be made: {error.strerror}.", "Name another directory.") from error


# The three places


def _simulate(job: JobFile, trainers: int, seed: int | None, out: Path | None) -> None:
    from fl.simulation.simulate import simulate

    if seed is not None:
        job = replace(job, conditions=replace(job.conditions, seed=seed))
    reports: list[RoundReport] = []
    with _table(job.draft(trainers).rules) as show:

        def seen(report: RoundReport) -> None:
            reports.append(report)
            show(reports)

        played = simulate(job, trainers, tell=seen)
    ended = Ended(played.status, played.cid, played.model, f"{played.seconds:.0f} s of virtual time")
    _conclude(job, f"{trainers} simulated trainers", reports, ended, out)


def _on_localnet(job: JobFile, file: Path, trainers: int, directory: Path, out: Path | None) -> None:
    from cli.localrun import perform
    from cli.trainers import orderly_end

    reports: list[RoundReport] = []
    with explained(), orderly_end(), waiting("Preparing") as say, _table(job.draft(trainers).rules) as show:

        def seen(report: RoundReport) -> None:
            reports.append(report)
            show(reports)

        ended = perform(job, file, trainers, directory, seen, say)
    _conclude(job, f"{trainers} trainers on four validators", reports, ended, out)


def _on_network(
    job: JobFile, client: Client, part_text: str, accept: str | None, wait_s: float, out: Path | None
) -> None:
    from cli.participation import (
        Answers,
        Part,
        awaited,
        check_same_app,
        existing,
        followed,
        held_by,
        roles_in,
        take_part,
    )
    from fl.client.sync import connect
    from fl.records import JobStatus, Role

    if client.key is None:
        raise BadInput("NO_KEY", "This needs an account.", "Name a key: --key FILE.")
    part: Part = Part.parse(part_text)
    named = job.load_app()
    answers = Answers()
    with connect(client.network, client.key, passphrase=client.secret(), home=client.home) as network:
        roles = roles_in(network, {Role.CREATOR, Role.TRAINER, Role.EVALUATOR})
        found = existing(network, job)
        # Whatever is wrong with the file is said before anything is read or sent.
        draft = job.draft() if found is None and Role.CREATOR in roles else None
        held = held_by(job, named, part)
        if found is None:
            found = network.create_drafted(draft) if draft is not None else awaited(network, job.name, wait_s)
            check_same_app(found, named, "the file has another")
        remark(f"{found.name} {found.id}, rules {found.rules_hash}")
        take_part(found, named.app, held, part, roles, accept, job.conditions.seed, tell=answers.tell)
        if Role.CREATOR not in roles and out is None:
            data = {
                "job": found.name,
                "status": JobStatus(found.status().status).name.lower(),
                "model": found.model_cid(),
                "answers": answers.data(),
            }
            tell(data, lambda: line(f"model {data['model']}"))
            return
        reports: list[RoundReport] = []
        with _table(found.rules) as show:
            for report in followed(found, named.app, held.held_out):
                reports.append(report)
                show(reports)
        cid, model = found.model_bytes()
        ended = Ended(JobStatus(found.status().status).name.lower(), cid, model, "")
    _conclude(job, network.name, reports, ended, out)


# What is shown


def _columns(rules: JobRules, held_out: Sequence[str]) -> tuple[str, ...]:
    measured = (*rules.metrics, *(f"eval {name}" for name in rules.evaluation.metrics), *held_out)
    return ("ROUND", "STATE", "UPDATES", "WEIGHT", *map(str.upper, measured), "LATE", "FAILED", "REFUSED")


def _cells(rules: JobRules, report: RoundReport, held_out: Sequence[str]) -> list[str]:
    refused = " ".join(f"{code}×{count}" for code, count in sorted(report.refused.items()))
    return [
        str(report.round),
        f"{report.state} {report.code}".rstrip(),
        f"{report.updates} of {report.cohort}",
        str(report.weight),
        *(_number(report.metrics.get(name)) for name in rules.metrics),
        *(_number(report.evaluation.get(name)) for name in rules.evaluation.metrics),
        *held_out,
        str(report.late or ""),
        str(report.failed or ""),
        refused,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"


@contextmanager
def _table(rules: JobRules) -> Iterator[Callable[[list[RoundReport]], None]]:
    if not on_terminal():
        yield lambda reports: _tell_last(rules, reports)
        return
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:

        def redraw(reports: list[RoundReport]) -> None:
            names = sorted({name for report in reports for name in report.held_out})
            rows = [
                _cells(rules, report, [_number(report.held_out.get(name)) for name in names])
                for report in reports[-_MOST_ROWS:]
            ]
            columns = _columns(rules, [f"held out {name}" for name in names])
            live.update(rich_table(*telling(columns, rows, usual="closed")), refresh=True)

        yield redraw


def _tell_last(rules: JobRules, reports: list[RoundReport]) -> None:
    """A pipe's columns are there before it is known what is measured on what is held out."""
    if len(reports) == 1:
        line("\t".join(_columns(rules, ["held out"])))
    held_out = " ".join(f"{name}={_number(value)}" for name, value in reports[-1].held_out.items())
    line("\t".join(_cells(rules, reports[-1], [held_out])))


def _conclude(job: JobFile, where: str, reports: list[RoundReport], ended: Ended, out: Path | None) -> None:
    files = _written(job, where, reports, ended, out) if out is not None else []
    data = {
        "job": job.name,
        "status": ended.status,
        "model": ended.cid,
        "rounds": [report.data() for report in reports],
        "files": list(map(str, files)),
    }

    def show() -> None:
        took = f" ({ended.took})" if ended.took else ""
        line(f"{job.name} is {ended.status} after {len(reports)} rounds{took}.")
        for path in files:
            line(str(path))
        line(f"model {ended.cid}")

    if ended.status != "finished":
        if not json_wanted():
            show()
        raise QuorateError("NOT_FINISHED", f"{job.name} is {ended.status}.", _why(reports))
    tell(data, show)


def _why(reports: list[RoundReport]) -> str:
    """Where a code says more."""
    codes = {code for report in reports for code in (report.code, *report.refused) if code}
    if not codes:
        return "See who stopped or paused it."
    return "What the codes mean: " + ", ".join(f"quorate explain {code}" for code in sorted(codes))


def _written(job: JobFile, where: str, reports: list[RoundReport], ended: Ended, out: Path) -> list[Path]:
    from cli.curves import draw_curves

    model, metrics, curves = out / MODEL_FILE, out / METRICS_FILE, out / CURVES_FILE
    content: dict[str, Any] = {"job": job.name, "model": ended.cid, "rounds": [report.data() for report in reports]}
    try:
        model.write_bytes(ended.model)
        metrics.write_text(json.dumps(content, indent=1) + "\n")
        draw_curves(reports, f"{job.name}: {where}", curves)
    except OSError as error:
        raise QuorateError("UNWRITABLE", f"{error.filename} cannot be written: {error.strerror}.") from error
    return [model, metrics, curves]
