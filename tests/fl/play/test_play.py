from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fl.client.jobdraft import draft_job
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.records import EvaluationPhase, JobStatus, Phase
from fl.simulation.conditions import Conditions, Draw, takes_ms
from fl.simulation.play import Model, Play
from fl.tensors.model import build_model, parse_model
from tests.fl.play.casts import START, Known, drafted, drawn, played

LARGE = 10_000
"""Values of a model that no transaction carries."""


def averaged(trainers: int, number: int, base: Model) -> Model:
    """The weighted mean of what `Known` answers, by the formula and in integers."""
    grid = grid_of(drafted(trainers).rules)
    weights = [trainer + 1 for trainer in range(trainers)]
    new = {}
    for name, array in base.items():
        values = [drawn(trainer, number, base)[name].ravel() for trainer in range(trainers)]
        moved = []
        for place, old in enumerate(array.ravel()):
            sums = sum(
                round(Fraction(float(each[place])) * weight * 2**grid.weighted_bits)
                for each, weight in zip(values, weights, strict=True)
            )
            moved.append(np.float32(float(old) + float(sums) / float(sum(weights) << grid.weighted_bits)))
        new[name] = np.array(moved, np.float32).reshape(array.shape)
    return new


def test_each_model_is_the_weighted_mean_of_its_rounds_answers() -> None:
    models: list[bytes] = []
    found = played(4, models=models)
    model: Model = START
    for seen, told in zip(found.rounds, models, strict=True):
        model = averaged(4, seen.record.number, model)
        assert told == build_model(drafted(4).rules.schema, dict(model))
        assert seen.record.updates.size == 4
    assert found.job.status == JobStatus.FINISHED and found.model == models[-1]


def test_the_same_seed_gives_the_same_play_and_another_one_another() -> None:
    harsh = {"stragglers": 0.3, "dropout": 0.2}
    one, same, other = (played(12, conditions=Conditions(seed=seed, **harsh), minimum=4) for seed in (1, 1, 2))
    assert one == same
    assert one.rounds != other.rounds


def test_trainers_are_asked_with_the_model_and_the_config_of_their_round() -> None:
    cast = Known()
    models: list[bytes] = []
    played(3, cast, models=models, config={"lr": {1: 0.5, 3: 0.25}, "epochs": 2})
    schema = drafted(3).rules.schema
    for number, before in enumerate(models[:-1], 1):
        model = parse_model(schema, before)
        asked = cast.models[number + 1]
        assert all(np.array_equal(asked[name], model[name]) for name in START)
    assert [cast.configs[round]["lr"] for round in (1, 2, 3)] == [0.5, 0.5, 0.25]
    assert sorted(cast.asked) == [(trainer, round) for trainer in range(3) for round in (1, 2, 3)]


def test_rounds_close_without_those_who_fail() -> None:
    found = played(30, conditions=Conditions(dropout=0.3), minimum=10, rounds=5)
    assert [seen.record.phase for seen in found.rounds] == [Phase.CLOSED] * 5
    assert all(seen.record.updates.size + seen.failed == 30 for seen in found.rounds)
    assert len({seen.failed for seen in found.rounds}) > 1


def test_a_job_whose_rounds_fail_in_a_row_is_paused() -> None:
    found = played(4, conditions=Conditions(dropout=1.0), max_failed=2)
    assert found.job.status == JobStatus.PAUSED
    assert [(seen.record.phase, seen.record.code, seen.failed) for seen in found.rounds] == [
        (Phase.FAILED, "BELOW_MINIMUM", 4),
        (Phase.FAILED, "BELOW_MINIMUM", 4),
    ]
    assert found.model == build_model(drafted(4).rules.schema, dict(START))


def test_nobody_waits_for_stragglers_longer_than_the_grace() -> None:
    cast = Known()
    slow = Conditions(stragglers=0.25, slowness=1000.0, spread=0.0)
    found = played(20, cast, conditions=slow, minimum=10, rounds=4)
    late = {seen.late for seen in found.rounds}
    assert len(late) == 1 and late != {0}
    assert found.seconds < 60, "of virtual time: two seconds of work and five of grace a round"
    assert len(cast.asked) == sum(seen.record.updates.size for seen in found.rounds), "who is late does no work"


def test_an_answer_that_no_validator_would_vote_for_is_counted_under_its_code() -> None:
    def wild(trainer: int, round: int, model: Model) -> Model:
        factor = 1e9 if trainer == 0 else np.nan if trainer == 1 else 1.0
        return {name: np.full(array.shape, factor, np.float32) for name, array in model.items()}

    found = played(5, Known(wild), minimum=3)
    assert [dict(seen.refused) for seen in found.rounds] == [{"OUT_OF_RANGE": 1, "NON_FINITE": 1}] * 3
    assert [seen.record.updates.size for seen in found.rounds] == [3] * 3


def test_the_chain_refuses_a_job_that_does_not_go_together() -> None:
    with pytest.raises(Refused) as refused:
        played(4, minimum=5)
    assert refused.value.code == "BAD_RULES"


def test_only_those_drawn_are_asked_after_a_check_in() -> None:
    cast = Known()
    cohort = {"size": 4, "over": 0.5, "check_in_s": 2}
    found = played(20, cast, cohort=cohort, target=4, rounds=12)
    asked = [{trainer for trainer, round in cast.asked if round == seen.record.number} for seen in found.rounds]
    assert all(seen.record.cohort == 6 and len(each) <= 6 for seen, each in zip(found.rounds, asked, strict=True))
    assert len(set.union(*asked)) > 12, "another draw, other trainers"


def test_without_rounds_updates_of_older_versions_count_less_and_of_too_old_ones_not_at_all() -> None:
    slow = Conditions(stragglers=0.3, slowness=4.0, spread=0.6)
    found = played(
        20, Known(), slow, mode="async", staleness=1, target=6, minimum=3, rounds=20, weights="examples", cap=64
    )
    assert found.job.status == JobStatus.FINISHED
    refused = {code for seen in found.rounds for code in seen.refused}
    assert refused == {"TOO_STALE"}, "nobody sends a second update to a buffer, or one to none"
    assert all(seen.record.updates.size >= 3 for seen in found.rounds)
    lighter = [seen for seen in found.rounds if sum(seen.record.weights) < seen.record.examples]
    assert lighter, "an old base weighs less than its examples"


def test_evaluators_measure_every_model_and_the_best_one_is_known() -> None:
    evaluation = {"metrics": ["accuracy"], "minimum": 3, "deadline_s": 30}
    found = played(4, evaluation=evaluation, goal={"metric": "accuracy"})
    for seen in found.rounds:
        assert seen.evaluation is not None and seen.evaluation.phase == EvaluationPhase.CLOSED
        assert seen.evaluation.values == ((1 + seen.record.number) * 1_000_000,), "the lower median of four"
    assert found.job.best == found.job.model and found.job.best_round == 3


def test_a_job_stops_at_its_goal() -> None:
    evaluation = {"metrics": ["accuracy"], "minimum": 4, "before_next": True, "deadline_s": 30}
    found = played(4, rounds=50, evaluation=evaluation, goal={"metric": "accuracy", "stop_at": 8})
    assert found.job.status == JobStatus.FINISHED and found.job.completed == 7


def test_what_an_encoding_leaves_out_is_told_later() -> None:
    """Of five values topk tells the largest one. Without what is owed, the others would never move."""

    def constant(trainer: int, round: int, model: Model) -> Model:
        return {"a": np.array([[1.0, 0.5], [0.5, 0.5]], np.float32), "b": np.array([0.5], np.float32)}

    found = played(2, Known(constant), encoding="topk", share=0.2, rounds=8, weights="equal")
    moved = parse_model(drafted(2).rules.schema, found.model)
    assert all((moved[name] - START[name] > 0.4).all() for name in START)
    total = sum(float((moved[name] - START[name]).sum()) for name in START)
    assert total == pytest.approx(8 * 3.0, abs=2 * 3.0), "what is still owed is at most some rounds' worth"


def test_an_answer_may_change_one_group_of_tensors() -> None:
    def only_b(trainer: int, round: int, model: Model) -> Model:
        return {"b": np.ones(1, np.float32)}

    class OfGroupOne(Known):
        def train(self, trainer: int, round: int, model: Model, config: object) -> object:  # type: ignore[override]
            answer = super().train(trainer, round, model, {})
            return type(answer)(answer.delta, answer.examples, answer.metrics, 1)

    found = played(3, OfGroupOne(only_b), groups={"body": ["a"], "head": ["b"]})
    moved = parse_model(drafted(3).rules.schema, found.model)
    assert np.array_equal(moved["a"], START["a"]) and moved["b"] == START["b"] + 3


def test_updates_weigh_what_the_data_sets_say_to_hold() -> None:
    found = played(3, weights="dataset", cap=5)
    assert [sum(seen.record.weights) for seen in found.rounds] == [2 + 4 + 5] * 3


def test_a_model_that_no_transaction_carries_is_played_like_any_other() -> None:
    start = {"w": np.ones(LARGE, np.float32)}
    draft = draft_job(
        "large", start, rounds=2, target=3, privacy="visible-to-validators", encoding="f32", metrics=["x"]
    )
    found = Play(draft, Known(), 3, Conditions()).run()
    assert found.job.status == JobStatus.FINISHED
    assert not np.array_equal(parse_model(draft.rules.schema, found.model)["w"], start["w"])


def test_what_a_rule_remembers_of_one_round_it_has_in_the_next() -> None:
    def constant(trainer: int, round: int, model: Model) -> Model:
        return {name: np.ones(array.shape, np.float32) for name, array in model.items()}

    found = played(2, Known(constant), rule="fedavgm", settings={"momentum": 0.5})
    moved = parse_model(drafted(2).rules.schema, found.model)
    assert all(np.array_equal(moved[name], START[name] + (1 + 1.5 + 1.75)) for name in START)


def test_a_trainer_takes_another_time_for_each_round_and_the_median_of_all_is_what_was_asked() -> None:
    conditions = Conditions(seconds=3.0, spread=0.5)
    times = [[takes_ms(conditions, Draw.TIME, who, round) for round in range(50)] for who in range(50)]
    assert all(len(set(each)) > 40 for each in times)
    assert np.median(times) == pytest.approx(3000, rel=0.05)
    assert np.log(np.array(times) / 3000).std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "median", "multi_krum"])
def test_every_kind_of_rule_is_played(rule: str) -> None:
    settings = {"multi_krum": {"faulty": 1, "chosen": 4}}.get(rule, {})
    found = played(6, rule=rule, settings=settings)
    assert found.job.status == JobStatus.FINISHED
    assert bool(found.job.optimizer) == (rule in ("fedavgm", "fedadam"))
