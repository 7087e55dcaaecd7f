"""What commands need beside the SDK, and how to have it."""

from __future__ import annotations

from importlib.util import find_spec

from fl.client.errors import BadInput

NODE = ("numba", "plyvel", "uvloop", "prometheus_client")
EXTRAS = {
    **dict.fromkeys((*NODE, "llvmlite"), "node"),
    "sklearn": "sklearn",
    "torch": "torch",
    "flwr": "flower",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
}
"""Packages by the extra that installs them."""


def missing(package: str, extra: str) -> BadInput:
    return BadInput(
        "MISSING_PACKAGE",
        f"This needs {package}, which is not installed here.",
        f"Install it: pip install 'quorate[{extra}]'",
    )


def need(*packages: str) -> None:
    """Raises what to do where one is missing, before anything is begun."""
    for each in packages:
        if find_spec(each) is None:
            raise missing(each, EXTRAS[each])


def need_kernels() -> None:
    """To compute models."""
    need("numba")


def need_node() -> None:
    """To run a validator."""
    need(*NODE)
