"""The floor does what it says: all of it, on every validator, to the bit what the product computes."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgpack
import numpy as np
import pytest
from nacl.exceptions import BadSignatureError

from benchmarks.floor import Pages, Workload, large, run_floor, small, wire
from benchmarks.floor.workload import JOB, place_of, weight
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.closing import Closing
from fl.errors import Refused
from fl.tensors.encodings import encode_update
from fl.tensors.model import model_form

SMALL = Workload(validators=2, updates=10, parameters=5000, passes=1)
LARGE = Workload(validators=2, updates=5, parameters=600_000, encoding="f32", passes=1)


def closed(asked: Workload) -> Closing:
    """By the product."""
    values = np.random.default_rng(1).normal(0, 0.01, asked.parameters).astype(np.float32)
    aggregation = Aggregation(AggregationRules(JOB, 1, asked.rules, 1))
    for number in range(asked.updates):
        place = place_of(number)
        payload = encode_update(asked.form, place, {"w": values})
        aggregation.add(Update(number, 1, place.member, weight(number), 0, payload, bytes(32)))
    form = model_form(asked.rules.schema)
    return aggregation.finish(bytes(32), form.header + bytes(form.size_bytes - len(form.header)))


@pytest.mark.parametrize("encoding", ["q8", "f32"])
def test_the_sums_of_small_updates_are_those_of_the_product(encoding: str) -> None:
    asked = Workload(validators=2, updates=10, parameters=5000, encoding=encoding, passes=1)
    sums = closed(asked).found.means[0].sums
    assert run_floor(asked).came_to == sha256(sums.data).digest()


def test_the_model_of_large_updates_is_that_of_the_product() -> None:
    model = b"".join(closed(LARGE).model())
    assert run_floor(LARGE).came_to == sha256(model).digest()


@pytest.mark.parametrize("asked", [SMALL, LARGE], ids=["small", "large"])
def test_files_that_are_used_again_change_nothing_but_the_time(asked: Workload) -> None:
    reused = Workload(2, asked.updates, asked.parameters, asked.encoding, Pages.REUSED, passes=2)
    assert run_floor(reused).came_to == run_floor(asked).came_to


def test_the_report_accounts_for_all_processor_time() -> None:
    found = run_floor(SMALL)
    told = found.report()
    assert sum(found.cpu_s.values()) == pytest.approx(found.client_cpu_s + found.validator_cpu_s, rel=0.5)
    assert told["updates"] == 10 and told["payload_bytes"] == SMALL.payload_bytes
    assert {"signatures", "decode and hash", "write", "relays in", "relays out"} <= told["cpu_s_by_step"].keys()


@pytest.fixture
def client() -> Iterator[tuple[wire.Peers, object]]:
    with wire.listen() as listener:
        port = listener.getsockname()[1]
        with wire.dial(port, wire.CLIENT) as connection:
            yield wire.Peers(0, listener, [port]), connection


@pytest.mark.parametrize(
    ("place", "error"), [(-1, BadSignatureError), (-70, ValueError), (40, ValueError), (120, (ValueError, KeyError))]
)
def test_a_small_update_with_a_bit_changed_ends_the_run(client, tmp_path: Path, place: int, error) -> None:  # type: ignore[no-untyped-def]
    peers, connection = client
    asked = Workload(validators=1, updates=3, parameters=100)
    validator = small.Validator(asked, tmp_path, peers)
    validator.prepare(1)
    sent = [bytearray(each) for each in small.transactions(asked)]
    sent[1][place] ^= 1
    wire.send_frame(connection, msgpack.packb([bytes(each) for each in sent]))
    with pytest.raises(error):
        validator.wait()


def test_small_updates_are_on_disk_as_they_came(client, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    peers, connection = client
    asked = Workload(validators=1, updates=3, parameters=100)
    validator = small.Validator(asked, tmp_path, peers)
    validator.prepare(1)
    frame = msgpack.packb(list(small.transactions(asked)))
    wire.send_frame(connection, frame)
    validator.wait()
    assert (tmp_path / "log-1").read_bytes() == frame


@pytest.mark.parametrize("what", ["hash", "value", "header"])
def test_a_leaf_that_is_not_what_it_should_be_ends_the_run(client, tmp_path: Path, what: str) -> None:  # type: ignore[no-untyped-def]
    peers, connection = client
    asked = Workload(validators=1, updates=1, parameters=100_000, encoding="f32")
    form, place = asked.form, place_of(0)
    payload = bytearray(encode_update(form, place, {"w": np.zeros(asked.parameters, np.float32)}))
    if what == "value":
        payload[-4:] = np.array([np.inf], "<f4").tobytes()
    if what == "header":
        payload[20] ^= 1
    name = sha256(payload if what != "hash" else b"another").digest()
    validator = large.Validator(asked, tmp_path, peers)
    validator.prepare(1)
    connection.sendall(large.LEAF.pack(0, 0, len(payload), name) + payload)
    with pytest.raises(ValueError if what == "hash" else Refused):
        validator.wait()
