"""`quorate explain`: what a code means, or who was in a round, what each answered, and who was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.auditing import archive_option, keep_option, looking, with_archives
from cli.client import Client, client_options
from cli.output import fields, reading, remark, table, tell
from fl.client.errors import BadInput
from fl.errors import CODES

if TYPE_CHECKING:
    from fl.client.audit.explain import Explanation, Part
    from fl.client.network import AsyncNetwork

_COLUMNS = (
    *("MEMBER", "NAME", "STANDING", "WEIGHT", "EXAMPLES", "NORM", "DISTANCE", "RANK", "COSINE", "SCORE", "REMARKS"),
)
_SPARE = ("MEMBER", "SCORE", "EXAMPLES", "RANK", "COSINE")


@click.command()
@click.argument("what", metavar="JOB|CODE")
@click.argument("number", metavar="[ROUND]", type=click.IntRange(1), required=False)
@archive_option
@keep_option
@client_options
@reading
def explain(client: Client, what: str, number: int | None, archives: tuple[str, ...], kept: bool) -> None:
    """Explain ROUND of JOB, or what a CODE of a refusal means.

    Of a round: who answered, with what weight; the norm of each update, its distance to what the model moved by, the
    rank and the angle of that; the score that the rule gave it, whether it was a copy of another; who was refused and
    why, and who was silent. Norms and distances are float64 figures for people. They need the updates, which nodes keep
    for some rounds and give to auditors, operators and their members.
    """
    if number is None:
        _explain_code(what)
        return
    with looking(f"Round {number}") as progress:

        async def work(network: AsyncNetwork) -> Explanation:
            from fl.client.audit.explain import explain_round
            from fl.client.audit.roundaudit import RoundAudit

            with_archives(network, archives)
            audit = RoundAudit(network, what, number, progress)
            found = await explain_round(audit, progress)
            if not kept:
                audit.recordings.clear()
            return found

        found = client.run(work)
    data = {
        "job": what,
        "round": number,
        "members": [_part_data(each) for each in found.parts],
        "remarks": list(found.remarks),
    }

    def show() -> None:
        table(_COLUMNS, [_row(each) for each in found.parts], only_telling=True, spare=_SPARE)
        for each in found.remarks:
            remark(each)

    tell(data, show)


def _explain_code(name: str) -> None:
    code = CODES.get(name.upper())
    if code is None:
        raise BadInput("UNKNOWN_CODE", f"'{name}' is no code.", "For a round, name it: quorate explain JOB ROUND.")
    data = {"code": code.name, "decided_by": str(code.decided_by.value), "means": code.sentence}
    tell(data, lambda: fields(data))


def _part_data(part: Part) -> dict[str, Any]:
    answer = part.answer
    data: dict[str, Any] = {"account": part.account.hex(), "name": part.name, "standing": part.standing}
    if answer is not None:
        measure = answer.measure
        data |= {
            "position": answer.position,
            "weight": answer.weight,
            "examples": answer.examples,
            "group": answer.group,
            "norm": None if measure is None else measure.norm,
            "distance": None if measure is None else measure.distance,
            "rank": answer.rank,
            "cosine": None if measure is None else measure.cosine,
            # Integers beyond what a JSON reader's float holds.
            "score": None if answer.score is None else str(answer.score),
            "copies": list(answer.copies),
        }
    return {**data, "refusals": list(part.refusals)}


def _row(part: Part) -> tuple[object, ...]:
    data = _part_data(part)
    told = list(part.refusals)
    if data.get("copies"):
        told.append(f"COPY of {', '.join(map(str, data['copies']))}")
    figures = [_figure(data.get(name)) for name in ("norm", "distance")]
    score = None if data.get("score") is None else f"{int(data['score']):.4g}"
    return (
        *(data["account"][:16], data["name"], data["standing"], data.get("weight"), data.get("examples")),
        *(*figures, data.get("rank"), _figure(data.get("cosine")), score, told),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
