"""`quorate job new`: a job file in which every choice is named, and the model that the job starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE
from cli.output import line, reading, running_code, tell
from fl.client.errors import BadFile, BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

JOB_FILE, MODEL_FILE = "job.toml", "model.safetensors"
_COLUMN = 38

_PRIVACY = {
    "visible-to-validators": "validators see each update, and so does who reads batches, if it is of 32 KiB or less",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a source tells of a job."""

    model: Mapping[str, NDArray[Any]]
    frozen: Sequence[str] = ()
    local: Sequence[str] = ()
    app: str = ""
    rounds: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


@click.command()
@click.argument("name")
@click.option("--torch", "torch_name", metavar="MODULE:MODEL", help="A module of PyTorch, or what makes one.")
@click.option("--sklearn", "sklearn_name", metavar="MODULE:ESTIMATOR", help="A prepared estimator, or what makes one.")
@click.option("--flower", "flower_name", metavar="MODULE:APP", help="An app of Flower's, unchanged; it also trains.")
@click.option("--run-config", metavar="'A=1 B=2'", help="With --flower: over that of the app's pyproject.toml.")
@click.option("--from", "file", type=FILE, help="A model in a file: .safetensors or .npz.")
@click.option("--app", metavar="MODULE:NAME", help="The training code that the job names; `quorate run` needs one.")
@click.option("--privacy", type=click.Choice(tuple(_PRIVACY)), required=True, help="Who can see an update; no default.")
@click.option("--rounds", type=click.IntRange(1), help="How many.  [default: the app's, else 10]")
@click.option("--target", type=click.IntRange(1), default=3, show_default=True, help="Updates that end a round.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="For the files.  [default: this one, where the app's module is]",
)
@running_code
@reading
def new(
    name: str,
    torch_name: str | None,
    sklearn_name: str | None,
    flower_name: str | None,
    run_config: str | None,
    file: Path | None,
    app: str | None,
    privacy: str,
    rounds: int | None,
    target: int,
    directory: Path,
) -> None:
    """Write the file of a job NAME, job.toml, and its initial model, model.safetensors.

    Exactly one of --torch, --sklearn, --flower and --from says what model that is. Look through the file, change what
    you like, then: quorate job create job.toml. With an app it runs at once: quorate run job.toml --simulate 8.

    \b
    quorate job new digits --torch net:Net --app net:app --privacy visible-to-validators
    quorate job new wards --from base.safetensors --privacy visible-to-validators
    """
    from fl.client.jobfile import read_job_file

    sources = [each for each in (torch_name, sklearn_name, flower_name, file) if each is not None]
    if len(sources) != 1:
        raise click.UsageError("Give exactly one of --torch, --sklearn, --flower and --from.")
    if run_config is not None and flower_name is None:
        raise click.UsageError("A --run-config is for an app of Flower's: give --flower.")
    paths = [directory / JOB_FILE, directory / MODEL_FILE]
    for path in paths:
        if path.exists():
            raise BadInput("FILE_EXISTS", f"There is a {path}.", "Move it away, or name another --directory.")
    drawn = _drawn(torch_name, sklearn_name, flower_name, file, run_config)
    kinds = _kinds(drawn)
    text = _rendered(name, drawn, app or drawn.app, privacy, rounds or drawn.rounds or 10, target)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_model(paths[1], drawn)
        paths[0].write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{directory} cannot be written: {error.strerror}.", "Name another.") from error
    draft = None
    try:
        draft = read_job_file(paths[0]).draft()
    finally:
        if draft is None:
            for path in paths:
                path.unlink(missing_ok=True)
    data = {
        "name": name,
        "job_file": str(paths[0]),
        "model_file": str(paths[1]),
        "app": app or drawn.app or None,
        **kinds,
    }

    def show() -> None:
        line(f"{paths[0]}: look through it; every choice is there.")
        told = ", ".join(f"{count} {role}" for role, count in kinds["tensors"].items() if count)
        line(f"{paths[1]}: {kinds['parameters']} parameters; tensors: {told}.")
        line(
            f"Then: quorate job create {paths[0]}"
            + (f", or quorate run {paths[0]} --simulate 8" if data["app"] else "")
        )

    tell(data, show)


def _drawn(
    torch: str | None, sklearn: str | None, flower: str | None, file: Path | None, run_config: str | None
) -> Drawn:
    from fl.client.apps import FLOWER, load_object

    if file is not None:
        return _of_file(file)
    if flower is not None:
        from fl.client.adapters import flower as adapter

        found = load_object(flower, Path.cwd(), lambda: adapter.draft(flower, run_config))
        return Drawn(
            found.arrays, found.roles["frozen"], found.roles["local"], FLOWER + flower, found.rounds, found.config
        )
    if torch is not None:
        from fl.client.adapters.torch import draft as draft_module

        arrays, roles = draft_module(load_object(torch, Path.cwd()))
    else:
        from fl.client.adapters.sklearn import draft as draft_estimator

        assert sklearn is not None
        arrays, roles = draft_estimator(load_object(sklearn, Path.cwd()))
    return Drawn(arrays, roles["frozen"], roles["local"])


def _of_file(file: Path) -> Drawn:
    """Floats are averaged. Whole numbers are carried along, or, if it is one number, counted by each for itself."""
    from fl.client.arrays import read_arrays

    arrays = read_arrays(file)
    whole = {name: array for name, array in arrays.items() if array.dtype.kind != "f"}
    return Drawn(
        arrays,
        [name for name, array in whole.items() if array.ndim > 0],
        [name for name, array in whole.items() if array.ndim == 0],
    )


def _kinds(drawn: Drawn) -> dict[str, Any]:
    """How many tensors there are of each role. Raises for a model that no job can have."""
    from fl.errors import Refused
    from fl.tensors.layout import AVERAGED, FROZEN, LOCAL, Schema, TensorSpec, check_schema

    roles = dict.fromkeys(drawn.frozen, FROZEN) | dict.fromkeys(drawn.local, LOCAL)
    specs = [
        TensorSpec(name, "F32" if name not in roles else _dtype(array), array.shape, roles.get(name, AVERAGED))
        for name, array in drawn.model.items()
    ]
    try:
        check_schema(Schema(tuple(specs)), 2**62)
    except Refused as refused:
        raise BadInput(refused.code, refused.sentence, "Rename or leave out what does not fit.") from None
    counts = {role: sum(each.role == role for each in specs) for role in (AVERAGED, FROZEN, LOCAL)}
    return {"tensors": counts, "parameters": sum(array.size for array in drawn.model.values())}


def _dtype(array: NDArray[Any]) -> str:
    from fl.client.tensorfile import name_of

    return name_of(array.dtype)


def _write_model(path: Path, drawn: Drawn) -> None:
    """Averaged tensors as the float32 that they are on the chain."""
    from fl.client.tensorfile import write_tensors
    from fl.tensors.layout import StoredTensor

    aside = {*drawn.frozen, *drawn.local}
    tensors = [
        StoredTensor(name, _dtype(array) if name in aside else "F32", array.shape)
        for name, array in drawn.model.items()
    ]
    write_tensors(path, tensors, {name: [array.ravel()] for name, array in drawn.model.items()})


def _rendered(name: str, drawn: Drawn, app: str, privacy: str, rounds: int, target: int) -> str:
    def said(key: str, value: object, comment: str) -> str:
        return f"{f'{key} = {_toml(value)}'.ljust(_COLUMN)} # {comment}"

    lines = [
        f"# The job {name}. Its rules never change once it is created; every choice is named here.",
        "# A line that begins with # says what holds without it. More: docs/simulation.md",
        "",
        said("name", name, "members find it by that"),
        said("app", app, "what trains; its module's hash goes into the rules")
        if app
        else '# app = "app:app"                      # what trains: package.module:object; `quorate run` needs one',
        said("rounds", rounds, "how many"),
        said("target", target, "updates that end a round at once"),
        said("minimum", 0.5, "of the target: so many are enough at the deadline"),
        "# maximum = 1024                       # the most that a round takes",
        said("deadline_s", 3600.0, "of a round"),
        said("grace_s", 60.0, "that a round waits for more, once it has the minimum"),
        "# max_failed = 3                       # failed rounds in a row that pause the job",
        said("privacy", privacy, _PRIVACY[privacy]),
        '# rule = "fedavg"                      # or median, trimmed_mean, krum, bulyan, …: docs/aggregation.md',
        '# weights = "examples"                 # or "equal", or "dataset"',
        "# cap = 16384                          # examples beyond this weigh no more",
        '# encoding = "q8"                      # or f32 (exact), f16, bf16, topk: docs/encodings.md',
        "# range_bits = 8                       # no value of an update exceeds 2^8",
        '# metrics = []                         # what trainers report with each update, as in ["loss"]',
        said("frozen", list(drawn.frozen), "tensors that are carried along unchanged"),
        said("local", list(drawn.local), "tensors that never leave their owner"),
        "",
        "[model]",
        said("file", MODEL_FILE, "beside this file"),
        "",
        "[config]                               # what trainers are given, by rounds as in lr = {1 = 0.1, 8 = 0.01}",
        *[f"{json.dumps(key)} = {_toml(value)}" for key, value in drawn.config.items()],
        "",
        "# [cohort]                             # size, over, check_in_s: so many are drawn for a round, not all",
        "# [evaluation]                         # metrics, minimum, deadline_s: evaluators measure each model",
        "# [goal]                               # metric, larger, stop_at: the best model is kept and named",
    ]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
