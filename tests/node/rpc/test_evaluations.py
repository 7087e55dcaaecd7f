from __future__ import annotations

import asyncio
import base64

from chain.codec import decode
from chain.light import StateBundle, genesis_checkpoint, verify_state_bundle
from chain.log import EMPTY, append, leaf_digest
from fl.evaluation import SubmitEvaluation
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.members import RegisterMember
from fl.records import METRIC_NAN, Evaluation, EvaluationPhase, Goal
from fl.state import answers_log, evaluation_key, evaluation_of
from tests.fl.builders import signing_key
from tests.fl.evaluating import asked
from tests.node.rpc.calls import Caller
from tests.node.rpc.test_transactions import assert_refused
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate

EVALUATORS = ("evaluator-a", "evaluator-b", "evaluator-c")
VALUES = {1: (700_000, 900_000, METRIC_NAN), 2: (600_000, 500_000, 800_000)}
"""What each of them measures, by rounds."""


async def evaluated(cluster: Cluster) -> Training:
    """A job of two rounds, whose models have all been measured."""
    asking, goal = asked(minimum=3, before_next=True), Goal("accuracy", larger=True)
    training = Training(cluster, trainers=4, rounds=2, evaluation=asking, goal=goal)
    training.evaluators = ()
    training.id = await training._certainly("creator", CreateJob(training.rules, b""))
    for name in EVALUATORS:
        key = signing_key(name).public
        await training._certainly("registrar", RegisterMember(name, key, ("evaluator",)))
        await training._certainly(name, JoinJob(training.id, rules_hash(training.rules), role="evaluator"))
    await training.begin()
    for number, values in VALUES.items():
        while (found := evaluation_of(cluster.node(0).store.state, training.id, number)) is None:
            await asyncio.sleep(0.1)
        assert found.phase == EvaluationPhase.OPEN
        for name, value in zip(EVALUATORS, values, strict=True):
            await training._certainly(name, SubmitEvaluation(training.id, number, found.model, 10, (value,)))
    assert await cluster.until(training.finished, within=60)
    return training


def test_what_was_measured_can_be_read_round_by_round_and_proven() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=23)
        await cluster.start()
        training = await evaluated(cluster)
        caller = Caller(cluster.node(0))
        job = await caller.get("/v1/jobs/digits")
        assert (job["evaluators"], job["evaluation"], job["best_round"], job["best_value"]) == (3, 2, 1, 700_000)
        first = await caller.get("/v1/jobs/digits/rounds/1")
        assert job["best"] == first["model"] != job["model"]
        assert job["rules"]["evaluation"]["metrics"] == ["accuracy"]
        assert job["rules"]["goal"] == {"metric": "accuracy", "larger": True, "stop_at": None}

        curves = await caller.get("/v1/jobs/digits/metrics?limit=1")
        assert curves["next"] == 2 and curves["best_round"] == 1
        (point,) = curves["rounds"]
        assert point["training"] == [{"name": "loss", "mean": 1_000_000}]
        assert point["evaluation"]["metrics"] == [{"name": "accuracy", "value": 700_000, "marked": 1}]
        assert (point["updates"], point["cohort"], point["phase"]) == (4, 4, "closed")
        rest = await caller.get("/v1/jobs/digits/metrics?cursor=2")
        assert [each["round"] for each in rest["rounds"]] == [2] and rest["next"] is None
        assert rest["rounds"][0]["evaluation"]["metrics"][0]["value"] == 600_000
        beyond = await caller.get(f"/v1/jobs/digits/metrics?cursor={2**63}")
        assert beyond["rounds"] == [] and beyond["next"] is None

        evaluation = await caller.get("/v1/jobs/digits/evaluations/1")
        assert evaluation.json() == point["evaluation"]
        assert (evaluation["phase"], evaluation["answers"], evaluation["examples"]) == ("closed", 3, 30)
        assert evaluation["model"] == first["model"]
        answers = await caller.get("/v1/jobs/digits/evaluations/1/answers?limit=2")
        last = await caller.get("/v1/jobs/digits/evaluations/1/answers?limit=2&cursor=2")
        found = [*answers["answers"], *last["answers"]]
        assert [each["values"] for each in found] == [[700_000], [900_000], [None]]
        assert [each["member"] for each in found] == [cluster.actor(name).account.hex() for name in EVALUATORS]
        assert answers["next"] == 2 and last["next"] is None
        log = EMPTY
        for position in range(3):
            leaf = cluster.node(0).store.leaves(answers_log(training.id, 1), position, position + 1)[0]
            assert leaf is not None
            log, _ = append(log, leaf_digest(leaf))
        assert log.root().hex() == evaluation["log_root"]

        one = await caller.get("/v1/jobs/digits/evaluators?limit=1")
        others = await caller.get(f"/v1/jobs/digits/evaluators?cursor={one['next']}")
        listed = [*one["evaluators"], *others["evaluators"]]
        assert {each["name"] for each in listed} == set(EVALUATORS) and len(listed) == 3
        assert others["next"] is None

        await asyncio.sleep(1)
        reply = await caller.get(f"/v1/state/{evaluation_key(training.id, 1).hex()}")
        bundle = decode(StateBundle, base64.b64decode(reply["bundle"]), 10**6)
        verify_state_bundle(genesis_checkpoint(cluster.genesis), bundle)
        assert bundle.value is not None
        assert decode(Evaluation, bundle.value, 10**6).values == (700_000,)

        assert_refused(await caller.get("/v1/jobs/digits/evaluations/3"), 404, "UNKNOWN_EVALUATION")
        assert_refused(await caller.get("/v1/jobs/digits/evaluations/3/answers"), 404, "UNKNOWN_EVALUATION")
        assert_refused(await caller.get("/v1/jobs/none/metrics"), 404, "UNKNOWN_JOB")

    simulate(main)
