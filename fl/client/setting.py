"""What surrounds an app in a round, for apps that want to know more than the model, their data and the config.

Such an app has a method `at(setting)`, which gives the app for this round alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fl.client.jobdraft import ConfigValue
from fl.records import JobRules

if TYPE_CHECKING:
    from fl.client.apps import App
    from fl.client.sync import Job


@dataclass(frozen=True, slots=True)
class Setting:
    """`directory` is where the app may keep what it wants to have in the next round, after a restart too: its own, for
    this job and account. None in a simulation, which ends with its process."""

    job: bytes
    account: bytes
    rules: JobRules
    round: int
    config: Mapping[str, ConfigValue]
    directory: Path | None


def setting_of(job: Job, round: int, config: Mapping[str, ConfigValue]) -> Setting:
    return Setting(bytes.fromhex(job.id), bytes.fromhex(job.account), job.rules, round, config, job.directory)


def app_at(app: App, setting: Setting) -> App:
    at = getattr(app, "at", None)
    placed: App = app if at is None else at(setting)
    return placed
