"""What the compiler makes of every kernel: nothing that would give other bytes on another processor."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba
import pytest

import fl.kernels
from fl.kernels.compiled import OPTIONS, Kernel
from fl.kernels.golden import check_golden


def kernels() -> list[Any]:
    modules = [import_module(each.name) for each in pkgutil.iter_modules(fl.kernels.__path__, "fl.kernels.")]
    found = [each for module in modules for each in vars(module).values() if isinstance(each, Kernel)]
    named: dict[str, Any] = {vars(each)["__name__"]: each for each in found}
    return [named[name] for name in sorted(named)]


def compiled_kernels() -> Iterator[tuple[str, str]]:
    """The optimised code of each kernel as the node runs it, for every signature."""
    check_golden()
    for kernel in kernels():
        again = numba.njit(**OPTIONS)(kernel.python)
        signatures = kernel.compiled.signatures
        assert signatures, f"{kernel.__name__} has no golden vectors"
        for number, signature in enumerate(signatures):
            again.compile(signature)
            yield f"{kernel.__name__}-{number}", again.inspect_llvm(signature)


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        pytest.skip("NUMBA_DISABLE_JIT is set: there is no compiled code to read")
    return dict(compiled_kernels())


def test_the_compiler_may_neither_contract_nor_reorder(code: dict[str, str]) -> None:
    for name, text in code.items():
        loose = re.findall(r"\b(?:fast|contract|reassoc|arcp|afn|nnan|ninf|nsz)\b|llvm\.fma\S*|llvm\.fmuladd\S*", text)
        assert not loose, name
        assert "denormal-fp-math" not in text, name
    # What is looked for would stand where these do.
    rounding = {"apply_mean", "sum_f32", "sum_q8", "sum_ordered", "sum_closest", "add_distances", "add_norms"}
    assert rounding <= {name.split("-")[0] for name, text in code.items() if re.search(r"\bfadd\b", text)}


def test_kernels_are_vector_code(code: dict[str, str]) -> None:
    for name, text in code.items():
        assert re.search(r"<\d+ x (?:double|float|i32|i64)>", text), name


def test_kernels_compile_for_arm_without_fused_multiply_add(code: dict[str, str]) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite has no aarch64 target: {error}")
    machine = target.create_target_machine(opt=3)
    for name, text in code.items():
        module = llvm.parse_assembly(without_x86_counting(text))
        module.triple = triple
        module.data_layout = str(machine.target_data)
        assembly = machine.emit_assembly(module)
        mnemonics = set(re.findall(r"^\t([a-z][a-z0-9.]*)", assembly, re.MULTILINE))
        assert ("fadd" in mnemonics) == bool(re.search(r"\bfadd\b", text)), name
        assert not {each for each in mnemonics if re.match(r"fn?m(add|sub|la|ls)", each)}, name


def without_x86_counting(text: str) -> str:
    """numba's reference counting, which lies outside the loops, is lowered for the host by the time its code
    can be read; this puts the portable form back."""
    return re.sub(
        r"(%\S+) = tail call i8 @llvm\.x86\.atomic\.sub\.cc\.i64\(ptr (?:\w+ )*(%\S+), i64 1, i32 4\)",
        r"%count.old = atomicrmw sub ptr \2, i64 1 monotonic, align 8\n"
        r"  %count.last = icmp eq i64 %count.old, 1\n"
        r"  \1 = zext i1 %count.last to i8",
        text,
    )
