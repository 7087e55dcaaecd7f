"""`quorate job`: what is trained, under which rules, and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client import FILE, Client, client_options
from cli.jobnew import new
from cli.output import (
    console,
    fields,
    json_wanted,
    line,
    on_terminal,
    reading,
    remark,
    rich_table,
    table,
    tell,
    waiting,
)
from fl.client.errors import BadInput, RefusedByChain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.live import Live

    from fl.client.job import AsyncJob
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt
    from fl.client.report import RoundReport
    from fl.records import Goal, Job, JobRules, Round

_LOOK_AGAIN_S = 1.0
COARSE_STEP = 2.0**-22
_ROLE = click.option(
    "--role",
    type=click.Choice(("trainer", "evaluator")),
    default="trainer",
    show_default=True,
    help="In which of them; a member may be both.",
)
_JOB_COLUMNS = ("NAME", "STATUS", "ROUND", "MEMBERS", "PARAMETERS", "ID")
_CURVE_COLUMNS = ("ROUND", "STATE", "UPDATES", "TRAINERS", "EVALUATORS", "TOOK")
ROUND_COLUMNS = ("ROUND", "STATE", "UPDATES", "METRICS", "MODEL", "HEIGHT")


@click.group()
def job() -> None:
    """Create, list, show, watch and stop training jobs.

    What is shown of a job is proven from the network file on; only lists are taken from one node as it gives them.
    """


job.add_command(new)


@job.command()
@click.argument("file", type=FILE)
@click.option("--if-missing", is_flag=True, help="Do nothing if there is a job of this name already.")
@client_options
@reading
def create(client: Client, file: Path, if_missing: bool) -> None:
    """Create the job that FILE describes.

    \b
    name = "digits"
    rounds = 10
    target = 8                             # updates that end a round at once
    minimum = 0.75                         # of these: so many are enough at the deadline
    deadline_s = 600
    privacy = "visible-to-validators"
    metrics = ["loss"]
    [model]
    file = "model.npz"                     # the initial model, beside this file
    [config]                               # for the trainers
    lr = {1 = 0.05, 8 = 0.01}              # from these rounds on

    docs/simulation.md lists all that a job file may say. quorate run takes the same file.
    """
    from fl.client.jobfile import read_job_file

    draft = read_job_file(file).draft()

    async def work(network: AsyncNetwork) -> AsyncJob:
        if if_missing:
            try:
                return await network.job(draft.rules.name)
            except RefusedByChain as error:
                if error.code != "UNKNOWN_JOB":
                    raise
        return await network.create_drafted(draft)

    from fl.jobrules import grid_of

    with waiting("Creating the job"):
        made = client.run(work)
    grid = grid_of(made.rules)
    data = {"id": made.id, "name": made.name, "rules_hash": made.rules_hash}
    # How finely values of an update are told apart, by what it weighs.
    steps = {"step_at_weight_1": grid.resolution(1), "step_at_cap": grid.resolution(made.rules.cap)}
    tell({**data, **steps}, lambda: fields({**data, **{name: f"{step:.3g}" for name, step in steps.items()}}))
    if grid.resolution(1) > COARSE_STEP:
        remark("Sums of this job are coarse where weights are small: lower range_bits, cap or maximum.")


@job.command("list")
@client_options
@reading
def list_jobs(client: Client) -> None:
    """List the jobs, as one node tells them."""
    jobs = client.pages("/v1/jobs", "jobs")
    rows = [
        (each["name"], each["status"], each["round"], each["members"], each["parameters"], each["id"]) for each in jobs
    ]
    tell(jobs, lambda: table(_JOB_COLUMNS, rows, spare=("PARAMETERS", "ID")))


@job.command()
@click.argument("name_or_id")
@client_options
@reading
def show(client: Client, name_or_id: str) -> None:
    """Show a job: its rules, proven, and how far it is."""

    async def work(network: AsyncNetwork) -> tuple[AsyncJob, Job]:
        found = await network.job(name_or_id)
        return found, await found.status()

    found, record = client.run(work)
    data = {**_job_data(found, record), "rules": _rules_data(found)}

    def draw() -> None:
        fields(_job_data(found, record))
        line()
        apart = ("tensors", "config", "evaluation", "goal")
        plain = {name: value for name, value in _rules_data(found).items() if name not in apart}
        fields({**plain, "evaluation": _evaluation_text(found.rules), "goal": _goal_text(found.rules.goal)})
        line()
        rules = found.rules
        shapes = [(each.name, each.dtype, "×".join(map(str, each.shape)), each.role) for each in rules.schema.tensors]
        table(("TENSOR", "DTYPE", "SHAPE", "ROLE"), shapes)
        if rules.config:
            rows = [(each.name, each.value, each.from_round) for each in rules.config]
            table(("CONFIG", "VALUE", "FROM ROUND"), rows)

    tell(data, draw)


def _job_data(found: AsyncJob, record: Job) -> dict[str, object]:
    from chain.cid import cid_text
    from fl.client.measures import metric_value
    from fl.records import JobStatus

    return {
        "id": found.id,
        "name": found.name,
        "status": JobStatus(record.status).name.lower(),
        "round": record.round,
        "completed": record.completed,
        "members": record.members,
        "evaluators": record.evaluators,
        "model": cid_text(record.model),
        "model_round": record.model_round,
        "best": cid_text(record.best) if record.best else None,
        "best_round": record.best_round if record.best else None,
        "best_value": metric_value(record.best_value) if record.best else None,
        "parameters": record.parameters,
        "rules_hash": found.rules_hash,
    }


def _evaluation_text(rules: JobRules) -> str:
    asked = rules.evaluation
    if not asked.every:
        return "none"
    who = f"{asked.cohort} evaluators" if asked.cohort else "all evaluators"
    when = "before the next round" if asked.before_next else "beside the next round"
    return (
        f"{asked.statistic} of {', '.join(asked.metrics)} after every {_nth(asked.every)}round, {when}, "
        f"by {who}, at least {asked.minimum}, within {asked.deadline_ms / 1000:g} s"
    )


def _nth(every: int) -> str:
    return "" if every == 1 else f"{every}. "


def _goal_data(goal: Goal) -> dict[str, object]:
    from fl.client.measures import metric_value

    return {"metric": goal.metric, "larger": goal.larger, "stop_at": metric_value(goal.value) if goal.stop else None}


def _goal_text(goal: Goal) -> str:
    if not goal.metric:
        return "none"
    text = f"{goal.metric}, the {'larger' if goal.larger else 'smaller'} the better"
    return text + (f"; the job stops at {_goal_data(goal)['stop_at']}" if goal.stop else "")


def _rules_data(found: AsyncJob) -> dict[str, object]:
    rules = found.rules
    plain = ("mode", "rule", "encoding", "weights", "cap", "target", "minimum", "maximum", "deadline_ms", "grace_ms")
    return {
        **{name: getattr(rules, name) for name in (*plain, "rounds", "max_failed", "privacy", "app")},
        "metrics": list(rules.metrics),
        "tensors": [
            {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "role": each.role}
            for each in rules.schema.tensors
        ],
        "evaluation": asdict(rules.evaluation) if rules.evaluation.every else None,
        "goal": _goal_data(rules.goal) if rules.goal.metric else None,
        "config": [
            {"name": each.name, "from_round": each.from_round, "type": each.type, "value": each.value}
            for each in rules.config
        ],
    }


@job.command()
@click.argument("name_or_id")
@client_options
@reading
def watch(client: Client, name_or_id: str) -> None:
    """Follow a job, round by round, until it is over."""

    async def work(network: AsyncNetwork) -> None:
        found = await network.job(name_or_id)
        with _shown(found) as draw:
            async for rounds in _progress(found):
                draw(rounds)

    client.run(work)


async def _progress(found: AsyncJob) -> AsyncIterator[list[Round]]:
    """All rounds so far, each time something has changed; ends with the job."""
    from fl.records import JobStatus, Phase

    rounds: list[Round] = []
    while True:
        record = await found.status()
        first = next((place for place, each in enumerate(rounds) if each.phase < Phase.CLOSED), len(rounds))
        fresh = [await found.round(number) for number in range(first + 1, record.round + 1)]
        seen = rounds[:first] + [each for each in fresh if each is not None]
        if seen != rounds:
            rounds = seen
            yield rounds
        if record.status in (JobStatus.FINISHED, JobStatus.STOPPED):
            return
        await asyncio.sleep(_LOOK_AGAIN_S)


@job.command()
@click.argument("name_or_id")
@click.option("--plot", type=FILE, metavar="FILE.png", help="Draw the curves; needs matplotlib.")
@client_options
@reading
def metrics(client: Client, name_or_id: str, plot: Path | None) -> None:
    """Show what trainers reported and evaluators measured, by rounds, each proven."""
    from cli.curves import check_drawing, draw_curves

    if plot is not None:
        check_drawing()

    async def work(network: AsyncNetwork) -> tuple[AsyncJob, Job, list[RoundReport]]:
        found = await network.job(name_or_id)
        return found, await found.status(), await found.reports()

    found, record, reports = client.run(work)
    if plot is not None:
        draw_curves(reports, found.name, plot)
    data = {
        "job": found.name,
        "best_round": record.best_round if record.best else None,
        "rounds": [each.data() for each in reports],
        "plot": str(plot) if plot is not None else None,
    }
    tell(data, lambda: table(_CURVE_COLUMNS, [_curve_row(each, record) for each in reports]))
    if plot is not None:
        remark(f"drawn: {plot}")


def _curve_row(report: RoundReport, record: Job) -> tuple[str, ...]:
    is_best = bool(record.best) and report.round == record.best_round
    return (
        str(report.round),
        f"{report.state} {report.code}".rstrip(),
        f"{report.updates} of {report.cohort}",
        _numbers(report.metrics),
        _numbers(report.evaluation) + (" best" if is_best else ""),
        f"{report.seconds:.1f} s",
    )


def _numbers(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in values.items())


@contextmanager
def _shown(found: AsyncJob) -> Iterator[Callable[[list[Round]], None]]:
    from fl.records import Phase

    if on_terminal():
        from rich.live import Live

        with Live(console=console(), auto_refresh=False) as live:
            yield lambda rounds: _refresh(live, found, rounds)
        return
    told: set[int] = set()

    def plainly(rounds: list[Round]) -> None:
        for each in rounds:
            if each.phase >= Phase.CLOSED and each.number not in told:
                told.add(each.number)
                _tell_round(found, each)

    if not json_wanted():
        line("\t".join(ROUND_COLUMNS))
    yield plainly


def _refresh(live: Live, found: AsyncJob, rounds: list[Round]) -> None:
    live.update(rich_table(ROUND_COLUMNS, [round_row(found, each) for each in rounds[-30:]]), refresh=True)


def _tell_round(found: AsyncJob, current: Round) -> None:
    tell(round_data(found, current), lambda: click.echo("\t".join(round_row(found, current))))


def round_data(found: AsyncJob, current: Round) -> dict[str, object]:
    from chain.cid import cid_text
    from fl.client.measures import metric_value
    from fl.records import Phase

    over = current.phase >= Phase.CLOSED
    return {
        "round": current.number,
        "state": Phase(current.phase).name.lower(),
        "code": current.code,
        "updates": current.updates.size,
        "cohort": current.cohort,
        "metrics": {
            name: metric_value(mean) for name, mean in zip(found.rules.metrics, current.means, strict=False) if over
        },
        "model": cid_text(current.model) if current.model else None,
        "height": current.ended_height if over else None,
    }


def round_row(found: AsyncJob, current: Round) -> list[str]:
    data = round_data(found, current)
    metrics = data["metrics"]
    assert isinstance(metrics, dict)
    return [
        str(data["round"]),
        f"{data['state']} {data['code']}".rstrip(),
        f"{data['updates']} of {data['cohort']}",
        _numbers(metrics),
        str(data["model"] or ""),
        str(data["height"] or ""),
    ]


@job.command()
@click.argument("name_or_id")
@click.option("--accept", help="Hash of the rules that were agreed on; any others are refused.")
@_ROLE
@click.option("--dataset", help="The own one that is trained on, by name or id.")
@client_options
@reading
def join(client: Client, name_or_id: str, accept: str | None, role: str, dataset: str | None) -> None:
    """Join a job under its rules."""

    async def work(network: AsyncNetwork) -> Receipt | None:
        return await (await network.job(name_or_id)).join(accept, role=role, dataset=dataset)

    receipt = client.run(work)
    data = {"joined": True, "receipt": None if receipt is None else receipt_data(receipt)}
    tell(data, lambda: line("joined" if receipt is not None else "was joined already"))


@job.command()
@click.argument("name_or_id")
@_ROLE
@client_options
@reading
def leave(client: Client, name_or_id: str, role: str) -> None:
    """Leave a job."""

    async def work(network: AsyncNetwork) -> Receipt:
        return await (await network.job(name_or_id)).leave(role=role)

    tell_done(client.run(work), f"left {name_or_id}")


@job.command()
@click.argument("name_or_id")
@client_options
@reading
def pause(client: Client, name_or_id: str) -> None:
    """Let the open round end, and open no other. A job's creator and registrars may."""

    async def work(network: AsyncNetwork) -> Receipt:
        return await (await network.job(name_or_id)).pause()

    tell_done(client.run(work), f"{name_or_id} is paused: the open round ends, and no other opens.")


@job.command()
@click.argument("name_or_id")
@client_options
@reading
def resume(client: Client, name_or_id: str) -> None:
    """Go on with a job that was paused, by hand or by rounds that failed."""

    async def work(network: AsyncNetwork) -> Receipt:
        return await (await network.job(name_or_id)).resume()

    tell_done(client.run(work), f"{name_or_id} goes on.")


@job.command()
@click.argument("name_or_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
@reading
def stop(client: Client, name_or_id: str, yes: bool) -> None:
    """End a job for everyone. Its creator and registrars may."""
    if not yes:
        if not on_terminal():
            raise BadInput("NOT_CONFIRMED", "Stopping a job cannot be undone.", "Say --yes if that is what you want.")
        click.confirm(f"End the job {name_or_id} for everyone, for good?", abort=True)

    async def work(network: AsyncNetwork) -> Receipt:
        return await (await network.job(name_or_id)).stop()

    tell_done(client.run(work), f"{name_or_id} is stopped, for everyone.")


def receipt_data(receipt: Receipt) -> dict[str, object]:
    return {
        "tx": receipt.tx,
        "status": receipt.status,
        "height": receipt.height,
        "job": receipt.job or None,
        "round": receipt.round,
        "position": receipt.position,
        "weight": receipt.weight,
        "nonce": receipt.nonce,
        "proof": str(receipt.path),
    }


def tell_done(receipt: Receipt, what: str) -> None:
    """A line; the receipt is on disk."""
    tell(receipt_data(receipt), lambda: line(what))


def tell_receipt(receipt: Receipt) -> None:
    data = receipt_data(receipt)
    of_rounds = () if receipt.round else ("round", "position", "weight")
    shown = {name: value for name, value in data.items() if value is not None and name not in of_rounds}
    tell(data, lambda: fields(shown))
