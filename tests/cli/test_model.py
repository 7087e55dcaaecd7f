"""Models in files and of jobs: fetched, described, compared."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

from chain.cid import cid_text
from chain.unixfs import cid_of
from fl.client.arrays import read_arrays
from fl.client.errors import BadFile, BadInput
from fl.client.modelstats import described
from fl.client.sync import connect
from fl.client.tensorfile import open_tensors, write_tensors
from fl.tensors.layout import StoredTensor
from tests.cli.run import done, quorate
from tests.fl.client.chainlet import Running, running

chance = np.random.default_rng(3)
ARRAYS = {
    "w": chance.normal(0, 1, (300, 1000)).astype(np.float32),
    "b": np.array([1.5, -2.25, 3e30], np.float32),
    "half": np.array([[0.5, -1]], np.float16),
    "n": np.array(7, np.int64),
    "on": np.array([True, False]),
}
NAMES = {"f4": "F32", "f2": "F16", "i8": "I64", "b1": "BOOL"}


def save(path: Path, arrays: dict[str, NDArray[Any]], floats: str | None = None) -> Path:
    tensors = []
    for name, array in arrays.items():
        dtype = NAMES[array.dtype.str[1:]]
        tensors.append(StoredTensor(name, floats if floats and dtype.startswith("F") else dtype, array.shape))
    write_tensors(path, tensors, {name: [array.ravel()] for name, array in arrays.items()})
    return path


@pytest.mark.parametrize("kind", ["safetensors", "npz", "packed"])
def test_files_of_every_kind_are_described_alike(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{'safetensors' if kind == 'safetensors' else 'npz'}"
    if kind == "safetensors":
        save(path, ARRAYS)
    else:
        fortran = {**ARRAYS, "w": np.asfortranarray(ARRAYS["w"])}
        (np.savez if kind == "npz" else np.savez_compressed)(path, **fortran)
    data = done("model", "describe", path, "--json").data
    assert data["cid"] == cid_text(cid_of(path.read_bytes())) and data["parameters"] == 300_008
    by_name = {each["name"]: each for each in data["tensors"]}
    w = by_name["w"]
    assert (w["dtype"], w["shape"]) == ("F32", [300, 1000])
    wide = ARRAYS["w"].astype(np.float64)
    assert [w[name] for name in ("norm", "min", "max", "mean")] == pytest.approx(
        [np.linalg.norm(wide), wide.min(), wide.max(), wide.mean()]
    )
    assert (by_name["n"]["shape"], by_name["n"]["mean"], by_name["on"]["mean"]) == ([], 7.0, 0.5)


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    big = {"w": np.zeros(8_000_000, np.float32)}
    paths = [save(tmp_path / "a.safetensors", big), tmp_path / "b.npz"]
    np.savez(paths[1], **big)
    for path in paths:
        tracemalloc.start()
        described(path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 16_000_000, "of 32 MB"


def test_what_is_not_finite_is_counted(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"w": np.array([1, np.nan, np.inf, 3], np.float32)})
    (found,) = described(path)
    assert (found.not_finite, found.least, found.most, found.mean) == (2, 1.0, 3.0, 2.0)


def test_bfloat16_is_read_as_the_floats_that_it_is_and_written_to_the_nearest(tmp_path: Path) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.38e38, 1e-40], np.float32)
    path = save(tmp_path / "m.safetensors", {"w": values}, "BF16")
    read = read_arrays(path)["w"]
    assert read.dtype == np.float32
    assert list(read[:3]) == [1.0, 1.0, 1.015625], "ties go to even"
    assert np.allclose(read[3], values[3], rtol=2**-8)
    with pytest.raises(BadInput) as refused:
        save(tmp_path / "m.safetensors", {"w": np.array([1e6], np.float32)}, "F16")
    assert refused.value.code == "TOO_LARGE"


def test_written_files_are_what_the_package_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy", reason="it is compared with")
    path = save(tmp_path / "m.safetensors", ARRAYS)
    package.save_file(ARRAYS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def hostile(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        hostile([1]),
        hostile({"w": 3}),
        hostile({"w": ENTRY}),
        hostile({"w": {**ENTRY, "dtype": "F33"}}, bytes(8)),
        hostile({"w": {**ENTRY, "shape": [2**20, 2**20]}}, bytes(8)),
        hostile({"w": {**ENTRY, "shape": [1]}}, bytes(8)),
        hostile({"w": {**ENTRY, "shape": [-1, -2]}}, bytes(8)),
        hostile({"w": {**ENTRY, "shape": [True, 2]}}, bytes(8)),
        hostile({"w": {**ENTRY, "shape": [1] * 9}}, bytes(8)),
        hostile({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)),
        hostile({"w": {**ENTRY, "data_offsets": [0, 1.5]}}, bytes(8)),
        hostile({"w": {**ENTRY, "data_offsets": [0]}}, bytes(8)),
        hostile(b'{"w": %b, "w": %b}' % (json.dumps(ENTRY).encode(), json.dumps(ENTRY).encode()), bytes(8)),
        hostile({f"w{number}": ENTRY for number in range(4100)}, bytes(8)),
        hostile(b"[" * 5000),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_file_that_lies_of_itself_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    ran = quorate("model", "describe", path, "--json")
    assert (ran.code, ran.data["code"]) == (2, "BAD_ARRAYS")
    with pytest.raises(BadFile), open_tensors(path):
        pytest.fail("it was believed before anything of it was read")


def test_an_npz_that_says_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, w=np.zeros(1000))
    text = path.read_bytes()
    path.write_bytes(text.replace(b"(1000,)", b"(9999,)"))
    assert quorate("model", "describe", path).code == 2
    with pytest.raises(BadFile), open_tensors(path):
        pytest.fail("it was believed before anything of it was read")
    np.savez(path, w=np.array([{}], object))
    assert quorate("model", "describe", path).code == 2


def npz_of(path: Path, header: str, data: bytes, kind: int = ZIP_DEFLATED) -> Path:
    with ZipFile(path, "w", kind) as made:
        line = f"{header}\n".encode()
        made.writestr("w.npy", np.lib.format.magic(1, 0) + struct.pack("<H", len(line)) + line + data)
    return path


def test_an_npz_with_a_shape_or_a_packing_that_numpy_does_not_write_is_refused(tmp_path: Path) -> None:
    whole = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    assert read_arrays(npz_of(tmp_path / "good.npz", whole % "(2,)", bytes(8)))["w"].shape == (2,)
    for shape in ("(-2,)", "(-1, -2)", "(True,)", "(0, 999999999999999999999)"):
        with pytest.raises(BadFile):
            read_arrays(npz_of(tmp_path / "bad.npz", whole % shape, bytes(8)))
    with pytest.raises(BadFile):
        read_arrays(npz_of(tmp_path / "bad.npz", whole % "(100000,)", bytes(400_000), ZIP_LZMA))


def test_an_npz_whose_directory_lies_is_refused(tmp_path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': True, 'shape': (1000000000,), }"
    path = npz_of(tmp_path / "bad.npz", header, bytes(8))
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 4_000_000_200)
    path.write_bytes(content)
    with pytest.raises(BadFile, match="packed"):
        read_arrays(path)


def test_tensors_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    entries = {f"t{each}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for each in range(3)}
    (tmp_path / "m.safetensors").write_bytes(hostile(entries, bytes(16)))
    with pytest.raises(BadFile, match="over one another"):
        read_arrays(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m.{suffix}").symlink_to("/dev/null")
    with pytest.raises(BadFile, match="no plain file"):
        read_arrays(tmp_path / f"m.{suffix}")


def test_two_files_are_compared(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", ARRAYS)
    assert done("model", "diff", first, save(tmp_path / "b.safetensors", ARRAYS), "--json").data["equal"]
    changed = {**ARRAYS, "w": ARRAYS["w"] * np.float32(1.5), "b": np.zeros(4, np.float32), "x": np.ones(1, np.float32)}
    del changed["n"]
    np.savez(tmp_path / "c.npz", **changed)
    data = done("model", "diff", first, tmp_path / "c.npz", "--json").data
    found = {each["name"]: each for each in data["tensors"]}
    assert not data["equal"]
    assert found["w"]["relative"] == pytest.approx(0.5) and found["w"]["cosine"] == pytest.approx(1)
    assert found["w"]["largest"] == pytest.approx(np.abs(ARRAYS["w"]).max() / 2)
    assert (found["n"]["note"], found["x"]["note"]) == ("only in the first", "only in the second")
    assert found["b"]["note"] == "of the shapes 3 and 4" and found["half"]["largest"] == 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("chain")) as started:
        yield started


@pytest.fixture(scope="module")
def job(chain: Running) -> str:
    model = {"w": ARRAYS["w"], "n": np.arange(3)}
    with connect(**chain.settings("creator", home="creator")) as network:
        network.create_job("wards", model, rounds=1, target=1, privacy="visible-to-validators", frozen=["n"])
    return "wards"


def options(chain: Running) -> list[object]:
    return ["--network", chain.network_file(), "--home", chain.directory / "reader"]


def test_a_model_of_a_job_is_fetched_as_it_is_or_as_a_copy(chain: Running, job: str, tmp_path: Path) -> None:
    exact = done("model", "get", job, "-o", tmp_path / "m.safetensors", *options(chain), "--json").data
    assert exact["certified"] and exact["cid"] == cid_text(cid_of((tmp_path / "m.safetensors").read_bytes()))
    for more, dtype in (
        (("--dtype", "bf16", "-o", "b.safetensors"), np.float32),
        (("--dtype", "f16", "--format", "npz", "-o", "h.npz"), np.float16),
        (("--format", "npz", "-o", "f.npz"), np.float32),
        (("--dtype", "f16", "-o", "h.safetensors"), np.float16),
    ):
        path = tmp_path / more[-1]
        data = done("model", "get", job, *more[:-1], path, *options(chain), "--json").data
        assert not data["certified"] and data["cid"] == exact["cid"]
        arrays = read_arrays(path)
        assert arrays["w"].dtype == dtype and list(arrays["n"]) == [0, 1, 2]
        assert np.allclose(arrays["w"], ARRAYS["w"], rtol=2**-8, atol=1e-4)
    assert quorate("model", "get", job, "--format", "npz", "-o", tmp_path / "x.safetensors", *options(chain)).code == 2


def test_a_model_of_a_job_is_described_and_compared(chain: Running, job: str, tmp_path: Path) -> None:
    data = done("model", "describe", job, *options(chain), "--json").data
    assert (data["job"], data["round"], [each["role"] for each in data["tensors"]]) == (
        *(job, 0),
        ["frozen", "averaged"],
    )
    path = tmp_path / "m.safetensors"
    done("model", "get", job, "-o", path, *options(chain))
    assert done("model", "diff", f"{job}:0", path, *options(chain)).out.startswith("equal: both are baf")
    assert quorate("model", "describe", f"{job}:x", *options(chain), "--json").data["code"] == "BAD_ROUND"
    assert quorate("model", "describe", f"{job}:9", *options(chain), "--json").data["code"] == "NO_MODEL"
    assert not list((chain.directory / "reader").rglob(".look*"))
