"""`quorate verify`, `explain` and `replay` against a small chain whose rounds are really aggregated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cli.packages
from chain.cid import cid_text
from chain.unixfs import cid_of
from cli.output import Exit
from fl.client.keyfile import save_key
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from tests.cli.run import done, quorate
from tests.cli.test_output import on_a_terminal
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running, running
from tests.fl.client.trained import LARGE, Trained


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


def options(chain: Running, name: str | None = None) -> list[object]:
    given: list[object] = ["--network", chain.network_file(), "--home", chain.directory / "home", "--patience", "1"]
    if name is not None:
        key = chain.directory / f"{name}.key"
        if not key.exists():
            save_key(key, signing_key(name), None)
        given += ["--key", key]
    return given


def test_a_round_is_verified_in_lines_and_in_json(chain: Running) -> None:
    job = Trained(chain)
    number = job.train()
    lines = done("verify", "digits", number, *options(chain)).out.splitlines()
    steps = [each.split("\t") for each in lines if each.count("\t") == 2]
    assert {verdict for verdict, *_ in steps} == {"ok"} and steps[0][1] == "head" and steps[-1][1] == "closing"
    assert "Round 1 of digits is verified." in lines and lines[-1].startswith("It rests on the certified state")
    data = done("verify", "digits", number, "--json", *options(chain)).data
    assert data["verified"] and [each["step"] for each in data["steps"]] == [name for _, name, _ in steps]
    assert not list((chain.directory / "home").rglob("audit/*")), "nothing of it is left"


def test_on_a_terminal_it_is_told_line_by_line(chain: Running) -> None:
    job = Trained(chain)
    number = job.train()
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal("verify", "digits", number, *options(chain)))
    steps = [line.split()[:2] for line in re.split(r"[\r\n]+", told) if line.startswith("ok ")]
    assert ["ok", "head"] in steps and ["ok", "closing"] in steps and "is verified" in told
    assert "trainer-003" in on_a_terminal("explain", "digits", number, *options(chain))
    assert "reproduced" in on_a_terminal("replay", "digits", "--rounds", number, *options(chain))


def test_what_fails_is_named_and_ends_in_code_6(chain: Running) -> None:
    job = Trained(chain)
    job.chain.miscomputes = lambda model: model[:-4] + bytes(4)
    number = job.train()
    ran = quorate("verify", "digits", number, *options(chain))
    assert ran.code == Exit.UNVERIFIED
    assert [line.split("\t")[1] for line in ran.out.splitlines() if line.startswith("FAILED")] == ["model", "closing"]
    certified = cid_text(job.chain.ledger.round(job.job, number).model)
    assert f"found {certified}" in ran.out and "model failed" in ran.out
    ran = quorate("verify", "digits", number, "--json", *options(chain))
    assert (ran.code, ran.data["code"], ran.data["exit_code"]) == (6, "NOT_VERIFIED", 6)
    assert [each["step"] for each in ran.data["steps"] if each["verdict"] == "failed"] == ["model", "closing"]


def test_what_cannot_be_had_ends_in_code_3_and_an_archive_has_it(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    number = job.train()
    archive = chain.run(chain.chain.open_archive())
    for face in chain.faces[:4]:
        face.door.whole.pop(job.entries(number)[0].cid)
    ran = quorate("verify", "digits", number, *options(chain, "auditor"))
    assert ran.code == Exit.UNREACHABLE and "--archive" in ran.out and "FAILED" not in ran.out
    assert quorate("verify", "digits", number, "--json", *options(chain, "auditor")).data["code"] == "INCOMPLETE"
    done("verify", "digits", number, "--archive", archive.url, *options(chain, "auditor"))


def test_a_round_that_is_not_or_is_not_over_is_a_mistake(chain: Running) -> None:
    job = Trained(chain)
    assert quorate("verify", "digits", 1, *options(chain)).code == Exit.USAGE
    job.train()
    for arguments in (("verify", "digits", 9), ("verify", "nothing", 1), ("explain", "digits", 9)):
        assert quorate(*arguments, *options(chain)).code == Exit.REFUSED
    assert quorate("verify", "digits", 0, *options(chain)).code == Exit.USAGE


def test_without_the_kernels_it_is_said_how_to_have_them(chain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.packages, "find_spec", lambda name: None)
    for command in (("verify", "digits", "1"), ("replay", "digits", "--rounds", "1")):
        ran = quorate(*command, *options(chain))
        assert ran.code == Exit.USAGE and "MISSING_PACKAGE" in ran.err and "quorate[node]" in ran.err


def test_a_round_is_explained(chain: Running) -> None:
    job = Trained(chain)
    number = job.train()
    head, *rows = done("explain", "digits", number, *options(chain)).out.splitlines()
    assert head.split("\t")[:4] == ["MEMBER", "NAME", "STANDING", "WEIGHT"]
    assert [row.split("\t")[1:4] for row in rows] == [
        [f"trainer-00{place}", "answered", str(10 * (place + 1))] for place in range(4)
    ]
    members = done("explain", "digits", number, "--json", *options(chain)).data["members"]
    assert sorted(each["rank"] for each in members) == [1, 2, 3, 4] and all(each["norm"] > 0 for each in members)


def test_a_code_is_explained() -> None:
    data = done("explain", "wrong_base", "--json").data
    assert data["code"] == "WRONG_BASE" and "another model" in data["means"]
    assert quorate("explain", "digits").code == Exit.USAGE


def test_rounds_are_replayed_without_a_member(chain: Running, tmp_path: Path) -> None:
    job = Trained(chain)
    for _ in range(2):
        job.train()
    out = tmp_path / "without.safetensors"
    ran = done("replay", "digits", "--without", "trainer-003", "--rounds", "1..2", "-o", out, *options(chain))
    assert f"reproduced with everybody: {cid_text(job.chain.ledger.round(job.job, 2).model)}" in ran.out
    assert "not what would have come about" in ran.err
    again = ("replay", "digits", "--without", "trainer-003", "--rounds", "1..2", "--json", *options(chain))
    data = done(*again).data
    first, last = data["replayed"]
    assert (first["round"], first["left_out"], last["round"], last["updates"]) == (1, 1, 2, 4)
    assert last["model_without"] == cid_text(cid_of(out.read_bytes())) != last["model"]
    assert (
        last["of_model"] > 0
        and last["of_change"] > 0
        and {each["tensor"] for each in data["tensors"]}
        == {each.name for each in job.rules.schema.tensors if each.role == "averaged"}
    )
    everybody = done("replay", "digits", "--rounds", "1..2", "--json", *options(chain)).data
    assert [each["difference"] for each in everybody["replayed"]] == [0, 0]


def test_both_models_are_measured_if_the_job_is_of_digits(chain: Running) -> None:
    pytest.importorskip("sklearn")
    shapes = {"hidden.weight": (64, 4), "hidden.bias": (4,), "output.weight": (4, 10), "output.bias": (10,)}
    tensors = [TensorSpec(name, "F32", shape, AVERAGED) for name, shape in sorted(shapes.items())]
    job = Trained(chain, schema=Schema(tuple(tensors)), app="digits")
    job.train()
    arguments = ("replay", "digits", "--without", "trainer-003", "--rounds", "1", "--evaluate", "--json")
    metrics = done(*arguments, *options(chain)).data["metrics"]
    assert set(metrics) == {"actual", "without"}
    assert all(0 <= each["accuracy"] <= 1 for each in metrics.values())
    assert metrics["actual"]["loss"] != metrics["without"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--rounds", "2..1"), Exit.USAGE),
        (("--rounds", "0"), Exit.USAGE),
        (("--rounds", "first"), Exit.USAGE),
        (("--rounds", "1", "--without", "creator"), Exit.USAGE),
        (("--rounds", "1", "--without", "nobody"), Exit.REFUSED),
        (("--rounds", "1", "--evaluate"), Exit.USAGE),
        (("--rounds", "1..2"), Exit.USAGE),
    ],
)
def test_a_replay_that_cannot_be_meant_is_refused(chain: Running, arguments: tuple[str, ...], code: Exit) -> None:
    job = Trained(chain)
    job.train()
    assert quorate("replay", "digits", *arguments, *options(chain)).code == code


def test_a_replay_of_rounds_that_do_not_come_about_again_ends_in_code_6(chain: Running) -> None:
    job = Trained(chain)
    job.chain.miscomputes = lambda model: model[:-4] + bytes(4)
    job.train()
    ran = quorate("replay", "digits", "--rounds", "1", "--without", "trainer-000", *options(chain))
    assert ran.code == Exit.UNVERIFIED and "NOT_REPRODUCED" in ran.err
