"""`quorate replay`: rounds again from what is recorded of them, without a member."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.auditing import archive_option, looking, threads, with_archives
from cli.client import FILE, Client, client_options, write_blob
from cli.output import fields, line, reading, remark, table, tell
from cli.packages import need_kernels
from fl.client.errors import BadInput, Unverified

if TYPE_CHECKING:
    from fl.audit.measures import Difference
    from fl.audit.replay import Courses
    from fl.client.audit.roundaudit import RoundAudit
    from fl.client.network import AsyncNetwork
    from fl.records import JobRules

_ROUNDS = re.compile(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?")
_NORMS = ("DIFFERENCE", "OF THE MODEL", "OF THE CHANGE")
_COLUMNS = ("ROUND", "UPDATES", "LEFT OUT", "MODEL WITHOUT THEM", *_NORMS)
_TENSORS = ("TENSOR", *_NORMS)
DIGITS = ("digits", "fl.client.trainer")
"""Apps whose model the built-in data set measures."""
WHAT_IT_IS = (
    "The others' updates are those that they computed from the models of the time, with the weights of the time: this"
    " is what the rules make of the record without some of it, not what would have come about."
)


def _read_rounds(context: click.Context, param: click.Parameter, text: str) -> range:
    found = _ROUNDS.fullmatch(text)
    first, last = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= first <= last:
        raise click.BadParameter("rounds are A..B, or one of them.")
    return range(first, last + 1)


@click.command()
@click.argument("job")
@click.option("--without", multiple=True, metavar="MEMBER", help="Account or name of who is left out; repeatable.")
@click.option("--rounds", callback=_read_rounds, required=True, metavar="A..B", help="Those that are replayed.")
@click.option("-o", "--out", type=FILE, help="File for the model without them: .safetensors.")
@click.option("--evaluate", is_flag=True, help="Measure both models on the built-in digits, if the job is of them.")
@archive_option
@client_options
@reading
def replay(
    client: Client,
    job: str,
    without: tuple[str, ...],
    rounds: range,
    out: Path | None,
    evaluate: bool,
    archives: tuple[str, ...],
) -> None:
    """Replay rounds A to B of JOB without a member, from the model that A began with.

    First each round is aggregated with everybody, and has to give the chain's model byte for byte; exit code 6 if it
    does not. Then it is aggregated without the members named, on top of the model that the rounds before have given
    without them. The updates of the others stay those that they computed from the models of the time.
    """
    need_kernels()
    with looking(f"Rounds {rounds[0]} to {rounds[-1]}") as progress, threads() as spread:

        async def work(network: AsyncNetwork) -> tuple[Courses, JobRules]:
            from fl.audit.replay import Courses
            from fl.client.audit.replay import account_of, replay_rounds

            with_archives(network, archives)
            members = frozenset([await account_of(network, each) for each in without])
            courses = Courses(members, spread, partial(progress, "add"))
            await replay_rounds(network, job, rounds, partial(_play, courses), progress)
            return courses, (await network.job(job)).rules

        courses, rules = client.run(work)
    if courses.begun is None:
        raise BadInput("NO_MODEL", f"None of these rounds of {job} came to a result.", "Name others.")
    if without and not any(each.left_out for each in courses.rounds):
        raise BadInput("NOTHING_LEFT_OUT", "None of these members has an update in these rounds.", "Name others.")
    if out is not None:
        write_blob(out, courses.other.model)
    metrics = _measured(rules, courses) if evaluate else None
    data, show = _told(courses, metrics)
    told = {"job": job, "without": list(without), "rounds": [rounds[0], rounds[-1]], "file": out and str(out)}
    tell({**told, **data}, show)


def _play(courses: Courses, audit: RoundAudit) -> None:
    from fl.audit.replay import Diverged

    if not audit.current.record:
        return
    try:
        courses.play(audit.recorded(), audit.recordings.keep)
    except Diverged as diverged:
        raise Unverified("NOT_REPRODUCED", f"With everybody, {diverged}.", "See quorate verify.") from None


def _measured(rules: JobRules, courses: Courses) -> dict[str, dict[str, float]]:
    from fl.client.apps import BUILT_IN
    from fl.tensors.model import parse_model

    if rules.app not in DIGITS:
        named = f"names the app {rules.app}" if rules.app else "names no app"
        raise BadInput(
            "NOT_DIGITS",
            f"The job {named}, and only models of the app digits can be measured here.",
            "Leave --evaluate out; -o FILE writes the model, for you to measure.",
        )
    app = BUILT_IN["digits"]()
    _, held_out = app.data()
    models = {"actual": courses.actual.model, "without": courses.other.model}
    return {name: dict(app.evaluate(parse_model(rules.schema, model), held_out)[1]) for name, model in models.items()}


def _told(courses: Courses, metrics: dict[str, dict[str, float]] | None) -> tuple[dict[str, Any], Callable[[], None]]:
    from chain.cid import cid_text

    last = courses.rounds[-1]
    rows = [
        {
            "round": each.number,
            "updates": each.updates,
            "left_out": each.left_out,
            "code": each.code,
            "model": cid_text(each.actual),
            "model_without": cid_text(each.other),
            **_difference_data(each.apart),
        }
        for each in courses.rounds
    ]
    data = {
        "reproduced": True,
        "replayed": rows,
        "tensors": [{"tensor": name, **_difference_data(each)} for name, each in last.tensors.items()],
        "metrics": metrics,
        "note": WHAT_IT_IS,
    }

    def show() -> None:
        line(f"reproduced with everybody: {cid_text(last.actual)}")
        table(_COLUMNS, [_row(each) for each in rows])
        table(_TENSORS, [(name, *_figures(each)) for name, each in last.tensors.items()])
        for name, found in (metrics or {}).items():
            fields({f"{metric}, {name}": f"{value:.4g}" for metric, value in found.items()})
        remark(WHAT_IT_IS)

    return data, show


def _difference_data(each: Difference) -> dict[str, float | None]:
    return {"difference": each.absolute, "of_model": each.to_model, "of_change": each.to_change}


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    model = f"{each['model_without']} {each['code']}".rstrip()
    figures = [_figure(each[name]) for name in ("difference", "of_model", "of_change")]
    return each["round"], each["updates"], each["left_out"], model, *figures


def _figures(each: Difference) -> list[str]:
    return [_figure(value) for value in (each.absolute, each.to_model, each.to_change)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
