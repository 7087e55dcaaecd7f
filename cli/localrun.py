"""A job file on a chain of its own: four validators on this machine, and its trainers and evaluators as processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cli.localnets import LocalNetwork, Plan, compile_kernels, make_room
from cli.participation import created, followed
from cli.run import Ended
from cli.trainers import Trainers
from fl.client.apps import holdings
from fl.client.jobfile import JobFile
from fl.client.report import RoundReport
from fl.client.sync import connect
from fl.records import JobStatus

VALIDATORS = 4
EVALUATORS = 2
_MARK = "run.json"
_READY_S = 120.0
_END_S = 30.0


def perform(
    job: JobFile,
    file: Path,
    trainers: int,
    directory: Path,
    tell: Callable[[RoundReport], None],
    say: Callable[[str], None],
) -> Ended:
    """Runs the job to its end; all processes end with it, whatever happens."""
    say("compiling, if that was not done on this machine")
    compile_kernels()
    named = job.load_app()
    held_out = holdings(named.app, trainers, job.partition).held_out
    evaluators = EVALUATORS if job.draft(trainers).rules.evaluation.every else 0
    make_room(directory, _MARK)
    local = LocalNetwork.create(directory, Plan(VALIDATORS, trainers, job.name, evaluators=evaluators, audited=True))
    commands = [_command(local, file, f"trainer-{number}", number, trainers) for number in range(trainers)]
    commands += [_command(local, file, f"evaluator-{number}", number, evaluators) for number in range(evaluators)]
    people = Trainers(directory / "people", commands)
    try:
        for name in local.members:
            local.start(name)
        people.start()
        local.wait_ready(local.members, _READY_S, lambda text: say(f"validators: {text}"))
        with connect(local.network_file, local.key_file("creator"), home=directory / "creator") as network:
            found = created(network, job, trainers)
            say(f"{found.name} {found.id}")
            for report in followed(found, named.app, held_out, people.check):
                tell(report)
            cid, model = found.model_bytes()
            status = JobStatus(found.status().status)
            if status == JobStatus.FINISHED:
                people.wait(time.monotonic() + _END_S)
    finally:
        people.stop()
        local.stop(local.members)
    return Ended(status.name.lower(), cid, model, f"logs and receipts: {directory}")


def _command(local: LocalNetwork, file: Path, name: str, number: int, of: int) -> list[str]:
    command = ["-m", "cli.main", "run", str(file.resolve()), "--network", str(local.network_file.resolve())]
    return [*command, "--key", str(local.key_file(name).resolve()), "--part", f"{number + 1}/{of}"]
