"""What is measured comes out as it is, in a form that is checked, and two reports compare as their spread allows."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from benchmarks.campaign import Answered, Outcome
from benchmarks.compare import BETTER, NOISE, OPEN, WORSE, compared, remarks
from benchmarks.figures import LESS, MORE, Case, Check, Curve, Figure, Floor, Latency, Use, medians
from benchmarks.links import received_by_links
from benchmarks.machine import machine, versions
from benchmarks.network import Snapshot
from benchmarks.processes import Processors, Span
from benchmarks.profiling import shares_of
from benchmarks.report import SCHEMA, markdown, read_report, report_of
from benchmarks.scenario import Scenario
from benchmarks.scenarios import scenarios
from benchmarks.scenarios.crash import pause
from benchmarks.scenarios.soak import growth_an_hour
from benchmarks.schema import Invalid, check
from benchmarks.submitting import Updates
from benchmarks.windows import cost_us, idle, rate, rate_curve, starved
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.keys import SigningKey
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, tx_id, verify_transaction
from fl.client.errors import BadFile, BadInput
from fl.execution import OK
from fl.records import Kind, Receipt
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of
from tests.cli.run import quorate

SCENARIOS = scenarios()
ROOT = Path(__file__).parents[2]


def made(rates: tuple[float, ...] = (100.0, 110.0, 90.0), costs: tuple[float, ...] = (50.0, 51.0)) -> dict[str, Any]:
    case = Case(
        "one",
        {"validators": 4, "encoding": "q8"},
        {"rate": Figure("1/s", rates, MORE), "cost": Figure("µs", costs, LESS), "bytes": Figure("", (1593.0,))},
        {"at rest": Latency((3.0, 1.0, 2.0)), "never seen": Latency(())},
        [Use("v0 core", "core", 1.5, 80.0, 60.0)],
        {"memory": Curve("seconds", "MiB", (0.5, 1.5), {"core": (60.0, 61.0)})},
        [Check("all is there", True)],
        [Floor("rate", "rate", "1/s", 200.0, 0.5, {"sign": 0.1})],
    )
    return report_of("small", "a test", "quorate bench small", {}, datetime.now(UTC), machine(), versions(), [case])


def test_a_report_is_valid_for_others_who_read_the_schema() -> None:
    jsonschema_rs.validator_for(SCHEMA).validate(made())
    assert made()["cases"][0]["figures"]["rate"] == {
        "unit": "1/s",
        "better": "more",
        "median": 100,
        "low": 90,
        "high": 110,
        "values": [100, 110, 90],
    }


def broken() -> Iterator[Callable[[dict[str, Any]], object]]:
    yield lambda report: report.pop("machine")
    yield lambda report: report.update(format="quorate-bench-0")
    yield lambda report: report.update(mood="good")
    yield lambda report: report.update(cases=[])
    yield lambda report: report.update(holds=1)
    yield lambda report: report["machine"].update(cores=1.5)
    yield lambda report: report["machine"].update(cores=True)
    yield lambda report: report["cases"][0]["figures"]["rate"].update(better="most")
    yield lambda report: report["cases"][0]["figures"]["rate"].update(median="many")
    yield lambda report: report["cases"][0]["curves"]["memory"]["lines"].update(core=[None])
    yield lambda report: report["cases"][0]["settings"].update(validators=[4])


@pytest.mark.parametrize("breaking", list(broken()))
def test_what_is_not_of_the_form_is_refused_by_us_and_by_others(breaking: Callable[[dict[str, Any]], object]) -> None:
    report = copy.deepcopy(made())
    breaking(report)
    assert not jsonschema_rs.validator_for(SCHEMA).is_valid(report)
    with pytest.raises(Invalid):
        check(report, SCHEMA)


def test_a_schema_that_says_more_than_is_looked_at_is_refused() -> None:
    with pytest.raises(Invalid, match="maxItems"):
        check([], {"type": "array", "maxItems": 3})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "quorate-bench-1"}', "[" * 100_000])
def test_a_file_that_is_no_report_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(content)
    with pytest.raises(BadFile, match="is no report"):
        read_report(tmp_path / "it.json")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = made()
    (tmp_path / "it.json").write_text(json.dumps(report))
    assert read_report(tmp_path / "it.json") == report


def test_the_table_has_every_figure_and_what_it_was_made_with() -> None:
    table = markdown(made())
    for word in ("| one | rate | 100 | 90 | 110 | 1/s |", "at rest", "50%", "`quorate bench small`", "Python 3."):
        assert word in table
    assert "never seen" not in table


# Comparing


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return {each.figure: each.verdict for each in compared(old, new)}


def test_what_overlaps_is_noise_and_what_does_not_is_better_or_worse() -> None:
    old = made((100.0, 110.0, 90.0), (50.0, 51.0))
    assert verdicts(old, made((109.0, 130.0), (51.0, 60.0)))["rate"] == NOISE
    assert verdicts(old, made((111.0, 130.0), (49.0, 40.0))) | {"at rest, p50": "", "at rest, p99": ""} == {
        "rate": BETTER,
        "cost": BETTER,
        "bytes": "",
        "at rest, p50": "",
        "at rest, p99": "",
    }
    assert verdicts(old, made((89.0, 70.0), (51.5, 60.0)))["rate"] == WORSE
    assert verdicts(old, made((89.0, 70.0), (51.5, 60.0)))["cost"] == WORSE
    assert verdicts(old, made((500.0,)))["rate"] == OPEN


def test_the_ratio_is_of_the_medians() -> None:
    found = {each.figure: each for each in compared(made((100.0, 110.0, 90.0)), made((200.0, 210.0)))}
    assert found["rate"].ratio == pytest.approx(2.05)
    assert found["rate"].old_spread == pytest.approx(0.2)


def test_reports_of_other_scenarios_are_not_compared_and_other_machines_are_told() -> None:
    old, new = made(), made()
    new["machine"]["cores"] += 1
    new["settings"] = {"validators": 7}
    assert sum("cores" in each or "validators" in each for each in remarks(old, new)) == 2
    new["scenario"] = "large"
    with pytest.raises(BadInput, match="One report is of small"):
        compared(old, new)


# Figures of windows


def test_stacks_are_counted_by_their_innermost_frame_that_says_what_it_is_for() -> None:
    stacks = """main (/x/asyncio/runners.py:1);step (/x/consensus/replica.py:7);encode (/x/chain/codec.py:3) 3
main (/x/asyncio/runners.py:1);step (/x/consensus/replica.py:7) 1
_worker (/x/concurrent/thread.py:9);wait (/x/threading.py:2) 90"""
    assert shares_of(stacks) == {"codec": 0.75, "ordering and availability": 0.25}


def test_bytes_on_links_are_those_of_connections_that_validators_dialled_or_took() -> None:
    told = """\
ESTAB 0 0 127.0.0.1:20001 127.0.0.1:39834 users:(("python3",pid=31,fd=5)) bbr bytes_sent:9 bytes_received:100 x
ESTAB 12 3 127.0.0.1:39836 127.0.0.1:20002 users:(("python3",pid=31,fd=6)) bbr bytes_acked:7 bytes_received:20 x
ESTAB 0 0 127.0.0.1:20003 127.0.0.1:39838 users:(("python3",pid=31,fd=7)) bbr bytes_received:5000 segs_out:2
ESTAB 0 0 127.0.0.1:39834 127.0.0.1:20001 users:(("python3",pid=32,fd=5)) bbr bytes_received:9 segs_out:2
ESTAB 0 0 127.0.0.1:20002 127.0.0.1:39836 users:(("python3",pid=33,fd=5)) bbr cwnd:10 segs_out:2
"""
    assert received_by_links(told, {20001, 20002}) == {31: 120, 32: 9}


def window(count: int, seconds: float, slow: int = 0) -> tuple[Snapshot, Snapshot]:
    """Of two validators, of which the second one has executed `slow` less."""
    before = Snapshot(100.0, {"v0": 10, "v1": 10}, {"v0": 100.0, "v1": 100.1}, {"v0 core": 1.0, "v1 core": 1.0})
    ended = 100.0 + seconds
    executed = {"v0": 10 + count, "v1": 10 + count - slow, "v2": 5}
    told = {"v0": ended, "v1": ended + 0.1, "v2": ended}
    return before, Snapshot(ended, executed, told, {"v0 core": 2.0, "v1 core": 3.0, "v2 core": 9.0})


def test_the_rate_is_that_of_the_slowest_validator_who_was_there_all_the_time() -> None:
    assert rate(window(1000, 10.0)) == pytest.approx(100)
    assert rate(window(1000, 10.0, slow=500)) == pytest.approx(50)


def test_the_cost_is_shared_by_all_that_validators_executed() -> None:
    assert cost_us(window(1000, 10.0), ("core",)) == pytest.approx(3.0 / 2000 * 1e6)
    assert cost_us(window(1000, 10.0), ("data",)) == 0


def test_time_without_an_update_to_send_is_a_share_of_all_places() -> None:
    outcome = Outcome(lanes=2, starved=[(0.0, 12.0), (14.0, 1.0), (30.0, 5.0)])
    assert starved(outcome, Span(10.0, 20.0)) == pytest.approx((2.0 + 1.0) / 10 / 2)


def test_idle_is_a_share_of_what_all_processors_could_have_done() -> None:
    before, after = window(1000, 10.0)
    before = replace(before, processors=Processors(50.0, 200.0))
    assert idle((before, replace(after, processors=Processors(55.0, 220.0)))) == pytest.approx(0.25)
    assert idle((before, before)) == 0
    earlier, later = Processors.now(), Processors.now()
    assert 0 < earlier.idle_s < earlier.all_s <= later.all_s


def test_answers_are_counted_in_the_second_in_which_they_came() -> None:
    answers = [Answered(10.5, 0.1, 64), Answered(10.9, 0.1, 64), Answered(12.1, 0.1, 64), Answered(99.0, 0.1, 64)]
    curve = rate_curve(Outcome(answers=answers), Span(10.0, 13.0))
    assert curve.lines["updates answered"] == (128, 0, 64)
    assert pause(Outcome(answers=answers), 10.2, Span(10.0, 13.0)) == pytest.approx(1.2)


def test_a_series_falls_into_repetitions() -> None:
    assert medians([1.0, 2.0, 3.0, 7.0, 8.0, 9.0, 99.0], 2) == (2.0, 8.0)
    assert medians([5.0], 3) == (5.0,)


def test_growth_is_of_the_second_half() -> None:
    curve = Curve(
        "seconds", "MiB", (0.0, 1800.0, 3600.0, 5400.0), {"flat": (0.0, 50.0, 60.0, 60.0), "up": (0, 0, 1, 3)}
    )
    assert growth_an_hour(curve, "flat") == pytest.approx(0, abs=1e-6)
    assert growth_an_hour(curve, "up") == pytest.approx(4)
    assert growth_an_hour(curve, "unknown") == 0


# Loads and scenarios


def keyed(number: int) -> Account:
    return Account(bytes(32), SigningKey.from_seed(bytes([number] * 32)))


def test_an_update_encoded_once_is_the_update_that_a_client_encodes_and_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, values, job = rules_of("job", 100, 3), some_values(100), bytes(range(32))
    form, updates = form_of(rules, 0), InlineUpdates(job, rules, values)
    monkeypatch.setattr("benchmarks.accounts.time.time_ns", lambda: 1_700_000_000_123_456_789)
    twins = [(keyed(number), keyed(number)) for number in (1, 2)]
    base = rules.initial
    # More than 127 in each: a nonce, as a round, takes more bytes then.
    for round_ in (*range(1, 140), 9_999, 10_000):
        for theirs, ours in twins:
            payload = encode_update(form, Place(job, round_, theirs.id), {"w": np.asarray(values)})
            body = SubmitUpdate(job, round_, base, 10, (), 0, raw_cid(payload), payload)
            assert updates.signed(ours, round_, base) == theirs.sign(body)
        base = raw_cid(base)


def test_of_the_same_round_another_base_and_another_chain_are_other_updates() -> None:
    rules, job = rules_of("job", 100, 3), bytes(32)
    updates, base = InlineUpdates(job, rules, some_values(100)), raw_cid(b"another")
    updates.signed(keyed(1), 1, rules.initial)
    read = decode(Transaction, updates.signed(keyed(1), 1, base), MAX_TRANSACTION_BYTES)
    assert decode(SubmitUpdate, read.body, MAX_TRANSACTION_BYTES).base == base
    elsewhere = Account(bytes(31) + b"\x01", SigningKey.from_seed(bytes(32)))
    read = decode(Transaction, updates.signed(elsewhere, 1, base), MAX_TRANSACTION_BYTES)
    assert read.chain == elsewhere.chain_id and verify_transaction(read, tx_id(read))


def test_a_receipt_is_known_by_its_bytes_to_be_of_an_update_that_the_round_took() -> None:
    job = bytes(range(32))
    good = Receipt(job, 300, job, 7, job, 200, Kind.SUBMIT_UPDATE, OK, job, 300, 9, 10)
    taken = Updates((), job, 300).taken
    assert taken in encode(good)
    others: list[dict[str, Any]] = [
        {"status": "ROUND_CLOSED"},
        {"round": 299},
        {"job": bytes(32)},
        {"kind": Kind.CHECK_IN},
    ]
    for other in others:
        assert taken not in encode(replace(good, **other))


def test_the_page_names_every_scenario_and_no_other() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    named = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in page.splitlines() if line.startswith("| `")]
    assert {name for names in named for name in names} == set(SCENARIOS)


def test_without_the_source_it_says_where_the_benchmarks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.bench.find_spec", lambda name: None)
    ran = quorate("bench", "small")
    assert (ran.code, ran.out) == (2, "") and "NO_BENCHMARKS" in ran.err and "Clone the repository" in ran.err


def test_an_unknown_scenario_and_an_unknown_setting_are_told() -> None:
    assert quorate("bench", "tiny", "--json").data["code"] == "UNKNOWN_SCENARIO"
    assert quorate("bench", "small", "--set", "mood=good", "--json").data["code"] == "UNKNOWN_SETTING"
    assert quorate("bench", "small", "--set", "validators=many", "--json").data["code"] == "BAD_SETTING"
    assert quorate("bench", "small", "--set", "validators", "--json").code == 2


def test_the_list_says_what_can_be_set() -> None:
    found = {each["name"]: each["settings"] for each in quorate("bench", "--list", "--json").data}
    assert found.keys() == SCENARIOS.keys() and found["small"]["validators"] == 4


def test_two_reports_are_compared_by_the_command(tmp_path: Path) -> None:
    for name, rates in (("old", (100.0, 110.0)), ("new", (300.0, 310.0))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made(rates)))
    ran = quorate("bench", "compare", tmp_path / "old.json", tmp_path / "new.json")
    [line] = [line for line in ran.out.splitlines() if line.startswith("one\trate")]
    assert line.split("\t")[3:] == ["105", "±5 %", "305", "±2 %", "2.90", BETTER]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_a_scenario_takes_its_own_settings_and_no_others(scenario: Scenario) -> None:
    name, setting = next(iter(scenario.settings.items()))
    text = str(setting.usual).lower()
    assert scenario.chosen(True, {name: text})[name] == setting.usual
    assert scenario.chosen(True, {}) == {name: each.quick for name, each in scenario.settings.items()}
    with pytest.raises(BadInput, match="mood"):
        scenario.chosen(False, {"mood": "good"})
    assert all(type(each.usual) is type(each.quick) for each in scenario.settings.values())
