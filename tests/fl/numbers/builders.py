"""Schemas, deltas and models that the tests of this room share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec as PackageSpec
from safetensors import serialize

from fl.tensors.coding import Coding
from fl.tensors.encodings import Place, UpdateForm, update_form
from fl.tensors.grid import Grid
from fl.tensors.layout import AVERAGED, FROZEN, LOCAL, Schema, TensorSpec, numpy_dtype
from tests.fl.numbers import oracle

JOB = bytes(range(32))
ROUND = 7
MEMBER = bytes(range(100, 132))
PLACE = Place(JOB, ROUND, MEMBER)

PACKAGE_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

SMALL = Schema(
    (
        TensorSpec("layer.weight", "F32", (5, 3), AVERAGED),
        TensorSpec("steps", "I64", (), FROZEN),
        TensorSpec("layer.bias", "F32", (5,), AVERAGED),
        TensorSpec("running", "F32", (5,), LOCAL),
        TensorSpec("layer.frozen", "F32", (3,), FROZEN),
        TensorSpec("embedding", "BF16", (2, 3), FROZEN),
    )
)


def flat_schema(parameters: int) -> Schema:
    return Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))


WIDE = Schema(
    (
        TensorSpec("b", "F32", (9000,), AVERAGED),
        TensorSpec("a", "F32", (3, 4096), AVERAGED),
        TensorSpec("a.frozen", "F32", (11,), FROZEN),
        TensorSpec("c/1", "F32", (17,), AVERAGED),
        TensorSpec("c/2", "F32", (), AVERAGED),
        TensorSpec("d", "F32", (2, 20000), AVERAGED),
    )
)
"""Several tiles, tensors that end within a block, and a frozen tensor between averaged ones."""


def form_of(schema: Schema, encoding: str, range_bits: int = 8) -> UpdateForm:
    """Of small rounds: three tenths of the values in topk, eight updates of a range of all values in ring32."""
    if encoding == "ring32":
        everything = 1 << Grid(range_bits, 10, 8).unweighted_bits + range_bits
        return update_form(schema, Coding(encoding, range_bits, updates=8, cap=10, clip=everything))
    return update_form(schema, Coding(encoding, range_bits, 300_000 if encoding == "topk" else 0))


def random_schema(draw: random.Random) -> Schema:
    alphabet = "abcXYZ019._/-"
    names: set[str] = set()
    while len(names) < draw.randint(1, 12):
        names.add("".join(draw.choices(alphabet, k=draw.choice((1, 2, 3, 8, 30)))))
    specs = []
    order = sorted(names)
    draw.shuffle(order)
    for name in order:
        shape = tuple(draw.choice((1, 2, 3, 7, 65)) for _ in range(draw.randint(0, 3)))
        role = draw.choice((AVERAGED, AVERAGED, FROZEN, LOCAL))
        dtype = "F32" if role == AVERAGED else draw.choice(sorted(PACKAGE_DTYPES))
        specs.append(TensorSpec(name, dtype, shape, role))
    specs.append(TensorSpec("zzzzzzzzz", "F32", (draw.choice((1, 4095, 4096, 4097, 9000)),), AVERAGED))
    return Schema(tuple(specs))


def package_bytes(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], metadata: dict[str, str]) -> bytes:
    """What the safetensors package writes for tensors given as (dtype, shape, bytes)."""
    buffers = {name: np.frombuffer(bytearray(data), np.uint8) for name, (_, _, data) in tensors.items()}
    specs = {
        name: PackageSpec(
            dtype=PACKAGE_DTYPES[dtype],
            shape=list(shape),
            data_ptr=buffers[name].ctypes.data,
            data_len=buffers[name].size,
        )
        for name, (dtype, shape, _) in tensors.items()
    }
    return bytes(serialize(specs, metadata))


def random_tensors(schema: Schema, seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """Every averaged tensor, drawn with a spread of magnitudes."""
    draw = np.random.default_rng(seed)
    return {
        spec.name: (draw.standard_normal(spec.shape) * scale * 2.0 ** draw.integers(-12, 3, spec.shape)).astype(
            np.float32
        )
        for spec in schema.tensors
        if spec.role == AVERAGED
    }


def random_model(schema: Schema, seed: int) -> dict[str, NDArray[Any] | bytes]:
    draw = np.random.default_rng(seed)
    frozen: dict[str, NDArray[Any] | bytes] = {
        spec.name: draw.bytes(prod(spec.shape) * numpy_dtype(spec.dtype).itemsize)
        for spec in schema.tensors
        if spec.role == FROZEN
    }
    return frozen | random_tensors(schema, seed)


def bits_of(array: NDArray[Any]) -> list[int]:
    return [int(each) for each in np.asarray(array, np.float32).ravel().view(np.uint32)]


def oracle_average(old: NDArray[Any], updates: Sequence[tuple[int, NDArray[Any]]], step_bits: int) -> list[int | None]:
    """The new values' bits from the old ones and (weight, decoded delta) pairs; None where not finite."""
    weight = sum(each for each, _ in updates)
    columns = [[(w, oracle.from_bits(bits)) for bits in bits_of(delta)] for w, delta in updates]
    new: list[int | None] = []
    for place, bits in enumerate(bits_of(old)):
        total = sum(oracle.steps(column[place][1], column[place][0], step_bits) for column in columns)
        value = oracle.applied(oracle.from_bits(bits), total, weight << step_bits)
        new.append(None if value is None else oracle.to_bits(value))
    return new
