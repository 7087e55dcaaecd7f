"""As with the core's door, on both loops."""

from __future__ import annotations

from tests.node.rpc.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]
