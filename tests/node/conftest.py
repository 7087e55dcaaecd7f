"""Fixtures that the tests of several files share."""

from tests.node.port_worlds import world

__all__ = ["world"]
