"""How good a job's models are: what trainers reported and what evaluators measured, round by round."""

from __future__ import annotations

from typing import Literal, TypedDict

from chain.codec import decode
from fl.records import METRIC_MARKS, Answer, Evaluation, EvaluationPhase, Evaluators, Round
from fl.state import answers_log, evaluation_of, evaluators_key, read_record, round_of
from node.rpc.api import Api
from node.rpc.fl_views import PHASES, MetricView, PhaseWord, metric_views
from node.rpc.jobs import AFTER, JOB, POSITION, ROUND, find_job, job_rules, name_of
from node.rpc.problems import Problem
from node.rpc.requests import LIMIT, Request, Response, json_response, number_cursor
from node.rpc.schema import I64, U64, CidText, Hex, HexDigest
from node.rpc.views import cid_or_none

FROM_ROUND = number_cursor("`next` of the page before.")

EvaluationPhaseWord = Literal["drawing", "open", "closed", "failed"]
_PHASES: dict[int, EvaluationPhaseWord] = {
    EvaluationPhase.DRAWING: "drawing",
    EvaluationPhase.OPEN: "open",
    EvaluationPhase.CLOSED: "closed",
    EvaluationPhase.FAILED: "failed",
}


class MeasuredView(TypedDict):
    """`value` is in millionths, and null where nobody gave a number; `marked` answers gave none."""

    name: str
    value: I64 | None
    marked: int


class EvaluationView(TypedDict):
    """`metrics` is empty until the evaluation is closed."""

    round: U64
    phase: EvaluationPhaseWord
    model: CidText | Hex | None
    opened_height: U64
    opened_ms: U64
    cohort: int
    answers: U64
    examples: U64
    deadline_ms: U64
    log_root: HexDigest
    ended_height: U64 | None
    ended_ms: U64 | None
    code: str | None
    metrics: list[MeasuredView]


class PointView(TypedDict):
    """A round on the curves: `training` has the means of what the updates reported, in millionths, once its updates
    are settled; `evaluation` is null where evaluators were not asked."""

    round: U64
    phase: PhaseWord
    code: str | None
    opened_ms: U64
    ended_ms: U64 | None
    cohort: int
    updates: U64
    weight: U64
    examples: U64
    training: list[MetricView]
    evaluation: EvaluationView | None


class CurvesView(TypedDict):
    """By rising round. `best_round` is the one whose model measured best (0: none yet)."""

    best_round: U64
    rounds: list[PointView]
    next: U64 | None


class AnswerView(TypedDict):
    """`values` are in millionths, in the order of the evaluation's metrics; null is no number."""

    position: U64
    tx_id: HexDigest
    member: HexDigest
    examples: U64
    values: list[I64 | None]


class AnswersView(TypedDict):
    answers: list[AnswerView]
    next: U64 | None


class EvaluatorView(TypedDict):
    account: HexDigest
    name: str | None


class EvaluatorsView(TypedDict):
    evaluators: list[EvaluatorView]
    next: HexDigest | None


async def metrics(api: Api, request: Request) -> Response:
    identity, found = find_job(api, request[JOB])
    rules = job_rules(api, identity)
    first = max(1, request[FROM_ROUND] or 1)
    stop = min(found.round + 1, first + request[LIMIT])
    points = [_point(api, identity, number, rules.metrics, rules.evaluation.metrics) for number in range(first, stop)]
    following = stop if stop <= found.round else None
    return json_response(CurvesView(best_round=found.best_round, rounds=points, next=following))


async def evaluation(api: Api, request: Request) -> Response:
    identity, _ = find_job(api, request[JOB])
    found = _evaluation(api, identity, request[ROUND])
    return json_response(_view(found, job_rules(api, identity).evaluation.metrics))


async def answers(api: Api, request: Request) -> Response:
    """In the order in which they were accepted."""
    identity, _ = find_job(api, request[JOB])
    found = _evaluation(api, identity, request[ROUND])
    first = request[POSITION] or 0
    stop = min(found.answers.size, first + request[LIMIT])
    leaves = api.node.store.leaves(answers_log(identity, found.round), first, max(first, stop))
    views = [_answer_view(position, decode(Answer, leaf, len(leaf))) for position, leaf in enumerate(leaves, first)]
    return json_response(AnswersView(answers=views, next=stop if stop < found.answers.size else None))


async def evaluators(api: Api, request: Request) -> Response:
    identity, _ = find_job(api, request[JOB])
    listed = read_record(api.node.store.state, Evaluators, evaluators_key(identity))
    after = request[AFTER] or b""
    accounts = [each for each in (listed.accounts if listed else ()) if each >= after]
    page, rest = accounts[: request[LIMIT]], accounts[request[LIMIT] :]
    views = [EvaluatorView(account=each.hex(), name=name_of(api, each)) for each in page]
    return json_response(EvaluatorsView(evaluators=views, next=rest[0].hex() if rest else None))


def _evaluation(api: Api, job: bytes, number: int) -> Evaluation:
    found = evaluation_of(api.node.store.state, job, number)
    if found is None:
        raise Problem("UNKNOWN_EVALUATION")
    return found


def _point(api: Api, job: bytes, number: int, trained: tuple[str, ...], measured: tuple[str, ...]) -> PointView:
    current = round_of(api.node.store.state, job, number)
    assert isinstance(current, Round), "rounds are numbered without gaps"
    found = evaluation_of(api.node.store.state, job, number)
    return PointView(
        round=number,
        phase=PHASES[current.phase],
        code=current.code or None,
        opened_ms=current.opened_ms,
        ended_ms=current.ended_ms or None,
        cohort=current.cohort,
        updates=current.updates.size,
        weight=current.weight,
        examples=current.examples,
        training=metric_views(trained, current.means),
        evaluation=None if found is None else _view(found, measured),
    )


def _view(found: Evaluation, names: tuple[str, ...]) -> EvaluationView:
    return EvaluationView(
        round=found.round,
        phase=_PHASES[found.phase],
        model=cid_or_none(found.model),
        opened_height=found.opened_height,
        opened_ms=found.opened_ms,
        cohort=found.cohort,
        answers=found.answers.size,
        examples=found.examples,
        deadline_ms=found.deadline_ms,
        log_root=found.answers.root().hex(),
        ended_height=found.ended_height or None,
        ended_ms=found.ended_ms or None,
        code=found.code or None,
        metrics=[
            MeasuredView(name=name, value=_number(value), marked=marked)
            for name, value, marked in zip(names, found.values, found.marked, strict=False)
        ],
    )


def _answer_view(position: int, answer: Answer) -> AnswerView:
    return AnswerView(
        position=position,
        tx_id=answer.tx_id.hex(),
        member=answer.member.hex(),
        examples=answer.examples,
        values=[_number(value) for value in answer.values],
    )


def _number(micro: int) -> int | None:
    return None if micro in METRIC_MARKS else micro
