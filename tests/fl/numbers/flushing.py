"""What a library built with -Ofast does to the thread that loads it: denormal numbers become zeros from here on.

python -m tests.fl.numbers.flushing says whether the sums of every rule are those of a thread that keeps them, and what
refuses to go on.
"""

from __future__ import annotations

import ctypes
import platform

import llvmlite.binding as llvm

from fl.aggregation import Aggregation
from fl.kernels.denormals import FlushedDenormals
from fl.kernels.golden import check_golden
from fl.tensors.model import build_model
from tests.fl.numbers.averaging import LOG_ROOT
from tests.fl.numbers.builders import random_model
from tests.fl.numbers.digests import rounds

_SETTING = {
    "x86_64": 'call void asm sideeffect "ldmxcsr $0", "*m"(ptr elementtype(i32) %place)',
    "aarch64": 'call void asm sideeffect "msr fpcr, $0", "r"(i64 %wide)',
}
_FLUSHED = {"x86_64": 0x9FC0, "aarch64": 1 << 24}
SUPPORTED = platform.machine() in _SETTING


def flush_denormals() -> None:
    machine = platform.machine()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(
        "define void @set(i32 %value) {\n"
        "  %place = alloca i32\n"
        "  store i32 %value, ptr %place\n"
        "  %wide = zext i32 %value to i64\n"
        f"  {_SETTING[machine]}\n"
        "  ret void\n"
        "}\n"
    )
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    ctypes.CFUNCTYPE(None, ctypes.c_uint32)(engine.get_function_address("set"))(_FLUSHED[machine])


def sums() -> list[bytes]:
    found = []
    for _, rules, updates in rounds():
        base = build_model(rules.rules.schema, random_model(rules.rules.schema, 1))
        aggregation = Aggregation(rules)
        aggregation.add(*updates)
        closing = aggregation.finish(LOG_ROOT, base)
        found += [each.sums.tobytes() for each in closing.found.means]
    return found


def refuses_to_write() -> bool:
    _, rules, updates = next(rounds())
    aggregation = Aggregation(rules)
    aggregation.add(*updates)
    closing = aggregation.finish(LOG_ROOT, build_model(rules.rules.schema, random_model(rules.rules.schema, 1)))
    try:
        list(closing.model())
    except FlushedDenormals:
        return True
    return False


def refuses_to_begin() -> bool:
    try:
        check_golden()
    except FlushedDenormals:
        return True
    return False


if __name__ == "__main__":
    kept = sums()
    assert not refuses_to_begin() and not refuses_to_write()
    flush_denormals()
    print(f"sums equal: {sums() == kept}")
    print(f"a model refused: {refuses_to_write()}")
    print(f"golden vectors refused: {refuses_to_begin()}")
