"""The machine and the versions that a report was made with, and what a signature costs there."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
import time
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chain.keys import SigningKey, verify
from fl.kernels import KERNEL_VERSION

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("quorate", "aiohttp", "cryptography", "msgpack", "numba", "numpy", "plyvel", "uvloop")


def machine() -> dict[str, Any]:
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(_line("/proc/meminfo", "MemTotal").split()[0] or 0) // 1024,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION, "kernels": str(KERNEL_VERSION)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["commit"] = _commit()
    return found


def _line(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    """Of the checkout, with a plus where files differ from it."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def signature_us(times: int = 2_000) -> tuple[float, float]:
    """Microseconds of processor time to sign, and to verify, what a transaction's signature covers."""
    key, message = SigningKey.from_seed(bytes(32)), sha256(b"a transaction").digest() * 3
    began = time.process_time()
    for _ in range(times):
        signature = key.sign(message)
    signed = time.process_time()
    for _ in range(times):
        verify(key.public, message, signature)
    ended = time.process_time()
    return (signed - began) / times * 1e6, (ended - signed) / times * 1e6
