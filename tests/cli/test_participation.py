from __future__ import annotations

import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.participation import Part, awaited, created, existing, followed, held_by, take_part
from fl.client.errors import BadInput, RefusedByChain
from fl.client.jobfile import JobFile, job_of
from fl.client.sync import connect
from fl.records import Role
from tests.fl.client.chainlet import Running, running

TRAINERS = 2
JOB = """
name = "digits"
app = "digits"
rounds = 2
privacy = "visible-to-validators"
metrics = ["loss"]
[model]
hidden = 0
[config]
epochs = 1
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def job() -> JobFile:
    return job_of(tomllib.loads(JOB), Path())


def train(settings: dict[str, Any], job: JobFile, number: int) -> None:
    part, named = Part(number, TRAINERS), job.load_app()
    with connect(**settings) as network:
        found = awaited(network, job.name, 60.0)
        held = held_by(job, named, part)
        take_part(found, named.app, held, part, {Role.TRAINER}, None, 1, tell=lambda answered: None)


def test_a_creator_follows_what_trainers_learn_each_from_its_part(chain: Running, job: JobFile) -> None:
    named, own = job.load_app(), chain.settings("creator", home="creator", patience_s=30.0)
    with ThreadPoolExecutor(TRAINERS) as people:
        # Each of them writes the network file, so none is asked for while another reads it.
        settings = [chain.settings(f"trainer-{number:03}", home=f"home{number}") for number in (1, 2)]
        training = [people.submit(train, each, job, number) for number, each in enumerate(settings, 1)]

        def alive() -> None:
            for each in training:
                if each.done():
                    each.result()

        with connect(**own) as network:
            found = created(network, job, TRAINERS)
            assert created(network, job, TRAINERS).id == found.id, "there is one of that name"
            try:
                reports = list(followed(found, named.app, held_by(job, named, Part(1, 2)).held_out, alive))
            except BaseException:
                # Or the others would wait for ever.
                found.stop()
                raise
    assert [(each.round, each.state, each.updates) for each in reports] == [(1, "closed", 2), (2, "closed", 2)]
    assert reports[0].examples == reports[1].examples == 1437, "between them they hold all that is to be trained on"
    assert reports[1].held_out["accuracy"] > 0.5


def test_nobody_trains_with_another_code_than_was_agreed_on(chain: Running, job: JobFile) -> None:
    with connect(**chain.settings("creator", home="creator")) as network:
        draft = job.draft(TRAINERS)
        network.create_drafted(replace(draft, rules=replace(draft.rules, app_digest=bytes(32))))
        with pytest.raises(BadInput) as refused:
            existing(network, job)
    assert refused.value.code == "WRONG_APP"


def test_a_job_that_nobody_creates_is_not_awaited_for_ever(chain: Running, job: JobFile) -> None:
    with connect(**chain.settings()) as network, pytest.raises(RefusedByChain) as refused:
        awaited(network, job.name, 0.0)
    assert refused.value.code == "UNKNOWN_JOB"


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "a/b", "1/0", "-1/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Part.parse(text)
