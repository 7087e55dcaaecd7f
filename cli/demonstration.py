"""The demonstration as a play: validators and trainers as processes, a crash in the middle, and what must hold.

Nothing in here knows a result beforehand: every number comes from the chain with its proof, from the trainers'
journals, or from a training run of the same model on all data in one place.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chain.cid import cid_text, raw_cid
from cli.localnets import LocalNetwork, Plan, compile_kernels, make_room
from cli.trainers import Trainers
from fl.client.apps import ACCURACY, LOSS
from fl.client.digits import CLASSES, FEATURES, deal, load_digits, save
from fl.client.errors import TimedOut
from fl.client.measures import metric_value
from fl.client.partition import SEED
from fl.client.perceptron import Data, accuracy, initial_model, train
from fl.client.sync import Job, Network, connect
from fl.jobrules import VISIBLE_TO_VALIDATORS
from fl.records import EvaluationPhase, JobStatus, Phase, Round

JOB = "digits"
HIDDEN = 64
CONFIG: dict[str, float | int] = {"lr": 0.05, "epochs": 10, "batch": 16, "momentum": 0.9}

LEAST_ACCURACY = 0.90
MOST_BEHIND_CENTRAL = 0.02

MARK = "demo.json"
_MILLIONTH = 1e-6
_PAUSE_S = 0.1
_READY_S = 120.0
_CATCH_UP_S = 60.0
_LAG_S = 3.0


@dataclass(frozen=True, slots=True)
class Script:
    directory: Path
    rounds: int = 10
    trainers: int = 8
    validators: int = 4
    timeout_s: float = 300.0

    @property
    def crash_in_round(self) -> int:
        return max(1, self.rounds // 2)

    @property
    def back_after_round(self) -> int:
        return min(self.crash_in_round + 2, self.rounds)


@dataclass(frozen=True, slots=True)
class Row:
    """A round that is over. `accuracy` was measured here, `on_chain` by the evaluator; `finality_s` is the median time
    from signing an update to its proven receipt."""

    round: int
    closed: bool
    accuracy: float
    on_chain: float | None
    loss: float
    updates: int
    cohort: int
    finality_s: float | None
    height: int


@dataclass(frozen=True, slots=True)
class Check:
    holds: bool
    what: str


@dataclass(slots=True)
class Outcome:
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    accuracy: float = 0.0
    central: float = 0.0
    cid: str = ""
    model_file: Path = Path()
    chain_id: str = ""
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(each.holds for each in self.checks)

    def check(self, holds: bool, what: str) -> None:
        self.checks.append(Check(holds, what))


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is shown the rows so far, what is being done, and what has happened."""

    rows: Callable[[list[Row]], None]
    doing: Callable[[str], None]
    happened: Callable[[str], None]


def perform(script: Script, audience: Audience) -> Outcome:
    """Run it. What did not hold is in the outcome; what stopped it is raised. All processes end either way."""
    began = time.monotonic()
    outcome = Outcome()
    make_room(script.directory, MARK)
    audience.doing("Compiling, if that was not done on this machine")
    compile_kernels()
    audience.doing("Preparing keys, a genesis and the trainers' data")
    training, held_out = load_digits()
    shares = deal(training, script.trainers)
    local = LocalNetwork.create(script.directory, Plan(script.validators, script.trainers, name="demo", evaluators=1))
    trainers = Trainers(script.directory / "trainers", _commands(script, local, shares, held_out))
    outcome.chain_id = local.chain_id
    try:
        for name in local.members:
            local.start(name)
        trainers.start()
        local.wait_ready(local.members, _READY_S, lambda text: audience.doing(f"Starting validators: {text}"))
        key, home = local.key_file("creator"), script.directory / "creator"
        with connect(local.network_file, key, home=home) as network:
            _Play(script, audience, local, trainers, network, held_out, outcome, began + script.timeout_s).run()
    finally:
        trainers.stop()
        audience.doing("Stopping")
        local.stop(local.members)
    audience.doing("Training the same model on all data in one place")
    outcome.central = _central(script, training, held_out)
    behind = outcome.central - outcome.accuracy
    outcome.check(
        outcome.accuracy >= LEAST_ACCURACY and behind <= MOST_BEHIND_CENTRAL,
        f"accuracy {outcome.accuracy:.1%} on {len(held_out)} pictures that no trainer saw; the same model trained "
        f"centrally: {outcome.central:.1%}",
    )
    outcome.seconds = time.monotonic() - began
    return outcome


def _commands(script: Script, local: LocalNetwork, shares: list[Data], held_out: Data) -> list[list[str]]:
    """Of the trainers, and of the evaluator at the end."""
    commands = []
    people = [*((name, "trainer") for name in local.trainers), ("evaluator-0", "evaluator")]
    for index, ((name, role), share) in enumerate(zip(people, [*shares, held_out], strict=True)):
        data = script.directory / "trainers" / str(index) / "share.npz"
        save(share, data)
        command = ["-m", "fl.client.trainer", "--network", str(local.network_file), "--job", JOB, "--role", role]
        command += ["--key", str(local.key_file(name)), "--data", str(data), "--seed", str(SEED + index)]
        commands.append(command)
    return commands


def _central(script: Script, training: Data, held_out: Data) -> float:
    weights, _ = train(
        initial_model(FEATURES, HIDDEN, CLASSES, SEED),
        training,
        SEED,
        lr=CONFIG["lr"],
        momentum=CONFIG["momentum"],
        epochs=int(CONFIG["epochs"]) * script.rounds,
        batch=int(CONFIG["batch"]),
    )
    return accuracy(weights, held_out)


class _Play:
    def __init__(
        self,
        script: Script,
        audience: Audience,
        local: LocalNetwork,
        trainers: Trainers,
        network: Network,
        held_out: Data,
        outcome: Outcome,
        ends: float,
    ) -> None:
        self._script = script
        self._audience = audience
        self._local = local
        self._trainers = trainers
        self._network = network
        self._held_out = held_out
        self._outcome = outcome
        self._ends = ends
        self._victim = list(local.members)[-1]
        self._over: list[tuple[Round, float, float]] = []
        self._on_chain: dict[int, float] = {}
        self._crashed = self._back = 0

    def run(self) -> None:
        job = self._create()
        self._train(job)
        self._audience.doing("Waiting for the trainers")
        self._trainers.wait(self._ends)
        self._show()
        self._check_rounds()
        self._check_final_model(job)
        self._check_evaluations(job)
        self._check_recovery()
        self._check_acknowledged()

    def _create(self) -> Job:
        script = self._script
        self._audience.doing("Creating the job")
        job = self._network.create_job(
            JOB,
            initial_model(FEATURES, HIDDEN, CLASSES, SEED),
            rounds=script.rounds,
            target=script.trainers,
            minimum=(2 * script.trainers + 2) // 3,
            deadline_s=60.0,
            grace_s=20.0,
            privacy=VISIBLE_TO_VALIDATORS,
            metrics=[LOSS],
            evaluation={"minimum": 1, "deadline_s": 60.0, "before_next": True, "metrics": [ACCURACY]},
            goal={"metric": ACCURACY},
            config=CONFIG,
            app="fl.client.trainer",
        )
        self._audience.happened(
            f"{len(self._local.members)} validators run; {script.trainers} trainers and an evaluator join the job "
            f"{job.name}."
        )
        return job

    def _train(self, job: Job) -> None:
        while True:
            self._trainers.check()
            if time.monotonic() > self._ends:
                raise TimedOut("TOO_SLOW", "The rounds are not over in time.", f"Look into {self._script.directory}")
            status = job.status()
            self._look(job, status.round)
            self._look_at_evaluations(job)
            self._show()
            if status.status in (JobStatus.FINISHED, JobStatus.STOPPED, JobStatus.PAUSED):
                return
            self._audience.doing(f"Round {max(1, status.round)} of {self._script.rounds}")
            time.sleep(_PAUSE_S)

    def _look(self, job: Job, newest: int) -> None:
        while len(self._over) < newest:
            found = job.round(len(self._over) + 1)
            begun = found is not None and found.updates.size > 0
            if newest > self._script.crash_in_round or (newest == self._script.crash_in_round and begun):
                self._crash(newest)
            if found is None or found.phase in (Phase.COLLECTING, Phase.AGGREGATING):
                return
            model = job.model(found.number) if found.phase == Phase.CLOSED else job.model()
            self._over.append((found, accuracy(model, self._held_out), time.monotonic()))
            self._maybe_return(found.number)

    def _look_at_evaluations(self, job: Job) -> None:
        for found, _, _ in self._over:
            if found.phase == Phase.CLOSED and found.number not in self._on_chain:
                evaluation = job.evaluation(found.number)
                if evaluation is not None and evaluation.phase == EvaluationPhase.CLOSED:
                    self._on_chain[found.number] = metric_value(evaluation.values[0])

    def _crash(self, round: int) -> None:
        if not self._crashed:
            self._local.kill(self._victim)
            self._crashed = round
            self._audience.happened(f"SIGKILL of {self._victim} in round {round}; the others go on.")

    def _maybe_return(self, round: int) -> None:
        if self._back or not self._crashed or round < self._script.back_after_round:
            return
        self._local.start(self._victim)
        self._back = round
        self._audience.happened(f"{self._victim} is started again after round {round}.")

    def _show(self) -> None:
        finality = self._trainers.finality()
        rows: list[Row] = []
        for found, measured, seen_at in self._over:
            taken = finality.get(found.number, [])
            is_whole = len(taken) >= found.updates.size and found.number in self._on_chain
            if not is_whole and time.monotonic() - seen_at < _LAG_S:
                break
            rows.append(
                Row(
                    round=found.number,
                    closed=found.phase == Phase.CLOSED,
                    accuracy=measured,
                    on_chain=self._on_chain.get(found.number),
                    loss=metric_value(found.means[0]) if found.means else float("nan"),
                    updates=found.updates.size,
                    cohort=found.cohort,
                    finality_s=statistics.median(taken) if taken else None,
                    height=found.ended_height,
                )
            )
        self._outcome.rows = rows
        self._audience.rows(rows)

    # What must hold

    def _check_rounds(self) -> None:
        closed = [found.number for found, _, _ in self._over if found.phase == Phase.CLOSED]
        wanted = list(range(1, self._script.rounds + 1))
        self._outcome.check(closed == wanted, f"{len(closed)} of {len(wanted)} rounds closed")

    def _check_final_model(self, job: Job) -> None:
        outcome = self._outcome
        outcome.cid, blob = job.model_bytes()
        outcome.accuracy = accuracy(job.model(), self._held_out)
        outcome.model_file = self._script.directory / "model.safetensors"
        outcome.model_file.write_bytes(blob)
        named = cid_text(raw_cid(outcome.model_file.read_bytes())) == outcome.cid
        outcome.check(named, "the final model's bytes hash to the CID that the validators certified")

    def _check_evaluations(self, job: Job) -> None:
        """What the evaluator's process answered is what this one measured, and the best of it is named."""
        self._look_at_evaluations(job)
        measured = {found.number: accuracy for found, accuracy, _ in self._over if found.phase == Phase.CLOSED}
        agrees = {number for number, value in self._on_chain.items() if abs(value - measured[number]) < _MILLIONTH}
        best = max(self._on_chain, key=lambda number: (self._on_chain[number], -number), default=0)
        named = job.status().best_round
        self._outcome.check(
            agrees == measured.keys() and named == best,
            f"the accuracy of {len(agrees)} of {len(measured)} models stands on the chain as it was measured here; "
            f"the model of round {named} is named as the best, with {self._on_chain.get(named, 0):.1%}",
        )

    def _check_recovery(self) -> None:
        """The validator that was killed reaches the state root that the others have at the same height."""
        if not self._crashed or not self._back:
            self._outcome.check(False, f"{self._victim} was not killed and started again: the rounds were over before")
            return
        self._audience.doing(f"Waiting until {self._victim} has caught up")
        least, ends = self._network.head(), time.monotonic() + _CATCH_UP_S
        roots: dict[int, dict[str, str]] = defaultdict(dict)
        while time.monotonic() < ends:
            for name in self._local.members:
                status = self._local.status(name)
                if status is not None:
                    roots[status["executed_height"]][name] = status["state_root"]
            verdict = judge_roots(roots, self._victim, least)
            if verdict is not None:
                self._outcome.check(verdict.holds, f"{verdict.what} ({self._crash_and_return})")
                return
            time.sleep(_PAUSE_S)
        self._outcome.check(False, f"{self._victim} did not catch up within {_CATCH_UP_S:g} s")

    @property
    def _crash_and_return(self) -> str:
        return f"killed in round {self._crashed}, started after round {self._back}"

    def _check_acknowledged(self) -> None:
        updates = sum(found.updates.size for found, _, _ in self._over)
        verdict = judge_acknowledged(
            self._trainers.transactions("acknowledged"),
            self._trainers.receipts(),
            lambda path: self._network.verify_receipt(path).status,
        )
        self._outcome.check(
            verdict.holds, f"{verdict.what}; {updates} of them updates" if verdict.holds else verdict.what
        )


def judge_roots(roots: dict[int, dict[str, str]], victim: str, least: int) -> Check | None:
    """Whether the validator that was killed has the others' state root, at a height from `least` on; None while no
    height has been seen at both. `roots` are those seen, by height and validator."""
    for height, by_name in sorted(roots.items()):
        if len(set(by_name.values())) > 1:
            return Check(False, f"at height {height} the validators' state roots differ: {by_name}")
    for height, by_name in sorted(roots.items()):
        if height >= least and victim in by_name and len(by_name) > 1:
            return Check(True, f"{victim} has the others' state root at height {height}, {by_name[victim][:16]}")
    return None


def judge_acknowledged(acknowledged: set[str], receipts: dict[str, Path], status: Callable[[Path], str]) -> Check:
    """Each transaction that a trainer was told is available must have been executed, with a proof on disk that
    `status` verifies once more."""
    lost = sorted(acknowledged - receipts.keys())
    refused = {each: code for each in sorted(acknowledged - set(lost)) if (code := status(receipts[each])) != "ok"}
    if lost or refused or not acknowledged:
        what = f"of {len(acknowledged)} acknowledged transactions {len(lost)} are lost {lost}, refused are {refused}"
        return Check(False, what)
    return Check(True, f"{len(acknowledged)} acknowledged transactions are all executed, each proof verified again")
