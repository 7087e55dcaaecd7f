"""`quorate new`: a directory to begin with, in which everything runs at once."""

from __future__ import annotations

from pathlib import Path

import click

from cli.output import line, reading, tell
from fl.client.scaffold import TEMPLATES, write_scaffold


@click.command()
@click.argument("directory", metavar="NAME", type=click.Path(path_type=Path))
@click.option("--template", type=click.Choice(TEMPLATES), default="numpy", show_default=True, help="What trains.")
@reading
def new(directory: Path, template: str) -> None:
    """Make a directory NAME with an app that trains, the file of its job, and what to do next.

    The app makes its data up, so it runs without a network and without an account; its comments say where your own data
    and training go. What is in a directory already is never touched.
    """
    written = write_scaffold(directory, template)
    data = {"name": directory.resolve().name, "template": template, "files": [str(each) for each in written]}

    def show() -> None:
        for each in written:
            line(str(each))
        line(f"Try it: cd {directory} && quorate run job.toml --simulate 8")

    tell(data, show)
