"""Ports of this machine on which a test may listen."""

from __future__ import annotations

from cli.localnets import free_port

__all__ = ["free_port"]
