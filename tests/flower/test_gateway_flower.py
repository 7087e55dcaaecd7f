"""The gateway's bytes beside Flower's own: objects, messages, bundles and patterns, in the environment of 1.41."""

from __future__ import annotations

from tests.flower.versions import ROOT, ended, started

APPS = (ROOT / "examples" / "flower", ROOT / "tests" / "flower" / "apps" / "lists")


def test_objects_messages_and_bundles_are_those_that_flower_makes() -> None:
    assert ended(started("1.41", "-m", "tests.flower.gateway_inside", *APPS)) == "the same\n"
