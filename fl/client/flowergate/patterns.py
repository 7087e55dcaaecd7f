"""Patterns of file names as in a .gitignore, of which the last that fits decides."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fl.client.errors import BadInput


class Patterns:
    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in lines if (rule := _rule(line)) is not None]

    def fit(self, path: str) -> bool:
        """A path from the top, with slashes."""
        for is_meant, pattern in reversed(self._rules):
            if pattern.fullmatch(path):
                return is_meant
        return False


def _rule(line: str) -> tuple[bool, re.Pattern[str]] | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    is_meant = not text.startswith("!")
    text = text.removeprefix("!").removeprefix("\\")
    is_from_top = "/" in text.rstrip("/")
    steps = [step for step in text.split("/") if step]
    if not steps:
        return None
    if not is_from_top and steps != ["**"]:
        steps.insert(0, "**")
    if not text.endswith("/"):
        expression = _expression(steps) + "(?:/.*)?"
    elif set(steps) == {"**"}:
        expression = ".+/.*"
    else:
        expression = _expression(steps) + ("" if steps[-1] == "**" else "/.*")
    try:
        return is_meant, re.compile(expression, re.DOTALL)
    except re.error:
        raise BadInput("BAD_PATTERN", f"The pattern {line.strip()!r} cannot be read.", "Correct it.") from None


def _expression(steps: list[str]) -> str:
    """`**` stands for any number of directories; at the end for all that is in one."""
    made, is_joined = "", True
    for place, step in enumerate(steps):
        is_last = place == len(steps) - 1
        if step == "**":
            if is_last:
                made += ".*" if is_joined else "/.*"
            else:
                made += "(?:.+/)?" if is_joined else "(?:/.+)?/"
                is_joined = True
            continue
        made += ("" if is_joined else "/") + _step(step)
        is_joined = False
    return made


def _step(step: str) -> str:
    if step == "*":
        return "[^/]+"
    made, at = "", 0
    while at < len(step):
        each = step[at]
        at += 1
        end = step.find("]", at + 1) if each == "[" else -1
        if end > 0:
            inside = step[at:end].replace("\\", "\\\\")
            made += f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
            at = end + 1
        elif each == "\\" and at < len(step):
            made += re.escape(step[at])
            at += 1
        else:
            made += {"*": "[^/]*", "?": "[^/]"}.get(each) or re.escape(each)
    return made
