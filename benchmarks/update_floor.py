"""What physics asks of a validator for each MiB of large f32 updates: processor time, step by step, nothing around.

    python -m benchmarks.update_floor [--trainers 8] [--validators 4] [--parameters 10000000]

Each step is done alone on threads of this process and its processor time taken: hash, write to the file system with one
sync a blob, look at the values, add them up, and bytes through a socket with and without TLS. A validator takes one of
n updates from a client and the others from validators, gives others about as much as it takes, writes the next model
once a round, and gives it to one of n trainers. Files stay until the end, as a round's do: memory that was not in use
costs more than memory that was, much more on a virtual machine whose host takes unused memory back.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from chain.keys import SigningKey
from fl.kernels import FUSED, apply_mean, sum_f32
from fl.tensors.floats import check_range
from node.ports.identity import BULK_PROTOCOL, LinkIdentity

MIB = 1024 * 1024
KEYS = [SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2)]
_WRITE_BYTES = 256 * 1024
_MOVED = 256
"""Leaves through a socket."""
_TIMES = 100


def _ms(work: Callable[[], object], mib: float, times: int = 1) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / mib / times * 1000


def written_ms(leaf: bytes, leaves: int, blobs: int, directory: Path) -> float:
    def write() -> None:
        for number in range(blobs):
            descriptor = os.open(directory / str(number), os.O_RDWR | os.O_CREAT)
            for place in range(leaves):
                os.pwrite(descriptor, leaf, place * MIB)
            os.fdatasync(descriptor)
            os.close(descriptor)

    return _ms(write, leaves * blobs)


def moved_ms(leaf: bytes, tls: bool) -> float:
    """Of both sides together."""
    here, there = socket.create_server(("127.0.0.1", 0)), socket.socket()
    there.connect(here.getsockname())
    plain, _ = here.accept()
    here.close()
    giver: socket.socket = plain
    taker: socket.socket = there
    server = LinkIdentity(KEYS[0], [KEYS[1].public], BULK_PROTOCOL).server()
    client = LinkIdentity(KEYS[1], [KEYS[0].public], BULK_PROTOCOL).client()

    def give() -> None:
        connection = server.wrap_socket(giver, server_side=True) if tls else giver
        for _ in range(_MOVED):
            view = memoryview(leaf)
            while view:
                view = view[connection.send(view[:_WRITE_BYTES]) :]
        connection.close()

    def take() -> None:
        connection = client.wrap_socket(taker) if tls else taker
        buffer, left = bytearray(MIB), _MOVED * MIB
        while left:
            left -= connection.recv_into(buffer, min(left, MIB))
        connection.close()

    def both() -> None:
        threads = [threading.Thread(target=each) for each in (give, take)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    return _ms(both, _MOVED)


def steps(parameters: int, trainers: int) -> dict[str, float]:
    """Milliseconds a MiB."""
    chance = np.random.default_rng(1)
    values = chance.normal(0, 0.01, MIB // 4).astype(np.float32)
    leaf, leaves = values.tobytes(), max(1, 4 * parameters // MIB)
    sums, factors = np.zeros(values.size, np.int64), np.full(FUSED, 2.0**30)
    edges = np.arange(0, values.size + 1, 16_384)
    updates = (values,) * FUSED
    new = np.empty_like(values)

    def add() -> int:
        return sum_f32(sums, updates, factors, edges, 0, edges.size - 1, False)

    def apply() -> int:
        return apply_mean(new, values, sums, 1e12)

    # Compiled, or loaded, before the clock runs.
    add()
    apply()
    with tempfile.TemporaryDirectory(prefix="quorate-floor-") as directory:
        written = written_ms(leaf, leaves, trainers, Path(directory))
    return {
        "hash": _ms(lambda: sha256(leaf), 1, _TIMES),
        "write": written,
        "check": _ms(lambda: check_range(values, 8), 1, _TIMES),
        "sum": _ms(add, FUSED, _TIMES),
        "apply": _ms(apply, 1, _TIMES),
        "tls_both_sides": moved_ms(leaf, tls=True),
        "plain_both_sides": moved_ms(leaf, tls=False),
    }


def validator_ms(found: dict[str, float], validators: int, trainers: int) -> float:
    """A MiB of updates and validator."""
    tls, plain = found["tls_both_sides"] / 2, found["plain_both_sides"] / 2
    relayed = (validators - 1) / validators
    update = found["hash"] + found["write"] + found["check"] + found["sum"]
    model = (found["apply"] + found["hash"] + found["write"]) / trainers
    return update + model + 2 * relayed * tls + 2 / validators * plain


def floor(parameters: int, trainers: int, validators: int) -> dict[str, object]:
    found = steps(parameters, trainers)
    return {
        "steps_ms_a_mib": {name: round(each, 3) for name, each in found.items()},
        "cpu_ms_a_mib_and_validator": round(validator_ms(found, validators, trainers), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--trainers", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    arguments = parser.parse_args()
    print(json.dumps(floor(arguments.parameters, arguments.trainers, arguments.validators), indent=2))
    print(f"TLS: {ssl.OPENSSL_VERSION}")


if __name__ == "__main__":
    main()
