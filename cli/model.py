"""`quorate model`: the models that rounds have made, verified against their CIDs in the proven state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, client_options, copy_file, write_arrays
from cli.job import ROUND_COLUMNS, round_data, round_row
from cli.output import fields, line, reading, table, tell
from cli.transfer import transferring
from fl.client.errors import BadFile, BadInput

if TYPE_CHECKING:
    from fl.client.job import AsyncJob
    from fl.client.modelstats import TensorDifference, TensorStats
    from fl.client.network import AsyncNetwork
    from fl.records import Job, Round

_FORMATS = ("safetensors", "npz")


@click.group()
def model() -> None:
    """The models that rounds have made."""


@model.command()
@click.argument("job")
@click.option("--round", "number", type=int, help="The model that this round made (0: the initial); else the newest.")
@click.option("--best", is_flag=True, help="The model that evaluators have measured to be best, by the job's goal.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Of the file.  [default: safetensors]")
@click.option("--dtype", type=click.Choice(("f32", "f16", "bf16")), help="Of the floats in a copy: no certified file.")
@click.option("-o", "--output", type=FILE, help="File to write.  [default: JOB-ROUND.FORMAT]")
@client_options
@reading
def get(
    client: Client,
    job: str,
    number: int | None,
    best: bool,
    form: str | None,
    dtype: str | None,
    output: Path | None,
) -> None:
    """Fetch a model. Its bytes are checked against the CID that a quorum of validators has signed.

    The safetensors file is the certified one, byte for byte, unless --dtype asks for a copy with other floats.
    """
    if best and number is not None:
        raise click.UsageError("Give at most one of --round and --best.")
    named = output.suffix.removeprefix(".") if output is not None else ""
    if form is not None and named in _FORMATS and named != form:
        raise click.UsageError(f"{output} is not called .{form}.")
    kind = form or (named if named in _FORMATS else "safetensors")
    if kind == "npz" and dtype == "bf16":
        raise BadInput("NO_BF16", "An .npz file holds no bfloat16.", "Ask for safetensors, or for f16.")

    with transferring() as progress:

        async def work(network: AsyncNetwork) -> tuple[str, int, str, Path]:
            found = await network.job(job)
            made_by = number if number is not None else _made_by(await found.status(), best)
            cid, kept = await found.model_file(made_by, progress=progress)
            path = output or Path(f"{found.name}-{made_by}.{kind}")
            _write(kept, path, kind, dtype)
            return found.name, made_by, cid, path

        name, made_by, cid, path = client.run(work)
    certified = kind == "safetensors" and dtype is None
    data = {
        "job": name,
        "round": made_by,
        "cid": cid,
        "bytes": path.stat().st_size,
        "file": str(path),
        "certified": certified,
    }
    tell(data, lambda: fields({**data, "certified": "the very bytes" if certified else "a copy of them"}))


def _write(kept: Path, path: Path, kind: str, dtype: str | None) -> None:
    from fl.client.tensorfile import FLOATS, SAFETENSORS, as_floats, open_tensors, stored_as, whole, write_tensors

    if kind == "safetensors" and dtype is None:
        copy_file(kept, path)
        return
    # What is kept has no name that tells its kind.
    with open_tensors(kept, SAFETENSORS) as file:
        if kind == "npz":
            arrays = {name: whole(file, name) for name in file.tensors}
            if dtype is not None:
                copies = {name: as_floats(each, FLOATS[dtype]) for name, each in file.tensors.items()}
                arrays = {name: stored_as(copies[name], each) for name, each in arrays.items()}
            write_arrays(path, arrays)
        else:
            assert dtype is not None
            tensors = [as_floats(each, FLOATS[dtype]) for each in file.tensors.values()]
            write_tensors(path, tensors, {name: file.pieces(name) for name in file.tensors})


def _made_by(record: Job, best: bool) -> int:
    if not best:
        return record.model_round
    if not record.best:
        raise BadInput("NO_BEST", "No model of this job has been measured by its goal.", "Ask for the newest one.")
    return record.best_round


@model.command("list")
@click.argument("job")
@client_options
@reading
def list_models(client: Client, job: str) -> None:
    """List the rounds of JOB that are over, with the model that each made."""

    async def work(network: AsyncNetwork) -> tuple[AsyncJob, list[Round]]:
        from fl.records import Phase

        found = await network.job(job)
        newest = (await found.status()).round
        rounds = [await found.round(number) for number in range(1, newest + 1)]
        return found, [each for each in rounds if each is not None and each.phase >= Phase.CLOSED]

    found, rounds = client.run(work)
    tell(
        [round_data(found, each) for each in rounds],
        lambda: table(ROUND_COLUMNS, [round_row(found, each) for each in rounds]),
    )


@model.command()
@click.argument("what", metavar="JOB|JOB:ROUND|FILE")
@client_options
@reading
def describe(client: Client, what: str) -> None:
    """Describe a model, tensor by tensor: of a JOB (its newest, or that of a ROUND), or in a FILE.

    Norms and means are float64 figures for people; values that are not finite are counted and left out of them.
    """
    from fl.client.modelstats import cid_of_file, described

    with _opened(client, what) as (path, roles, about):
        found = described(path)
        whole = {**about, "cid": cid_of_file(path), "bytes": path.stat().st_size}
    whole |= {"tensors": len(found), "parameters": sum(each.parameters for each in found)}
    rows = [_stats_data(each, roles) for each in found]

    def show() -> None:
        fields(whole)
        line()
        columns = ("TENSOR", "DTYPE", "SHAPE", "ROLE", "VALUES", "NORM", "MIN", "MAX", "MEAN", "NOT FINITE")
        table(columns, [_stats_row(each) for each in rows], only_telling=True)

    tell({**whole, "tensors": rows}, show)


@model.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@client_options
@reading
def diff(client: Client, first: str, second: str) -> None:
    """Tell how two models differ, tensor by tensor. A and B are files, or JOB:ROUND.

    LARGEST is the largest change of a value, RELATIVE the norm of the change by that of A's tensor, COSINE that of the
    angle between the two. Models whose bytes are the same are equal, and no more is said.
    """
    from fl.client.modelstats import cid_of_file, differences

    with _opened(client, first) as (one, _, _), _opened(client, second) as (other, _, _):
        cids = [cid_of_file(one), cid_of_file(other)]
        equal = cids[0] == cids[1]
        found = [] if equal else list(differences(one, other))
    data = {
        "equal": equal,
        "first": {"what": first, "cid": cids[0]},
        "second": {"what": second, "cid": cids[1]},
        "tensors": [_difference_data(each) for each in found],
    }

    def show() -> None:
        if equal:
            line(f"equal: both are {cids[0]}")
            return
        columns = ("TENSOR", "LARGEST", "RELATIVE", "COSINE", "NOTE")
        rows = [
            (each.name, figure(each.largest), figure(each.relative), figure(each.cosine), each.note) for each in found
        ]
        table(columns, rows, only_telling=True)

    tell(data, show)


@contextmanager
def _opened(client: Client, what: str) -> Iterator[tuple[Path, dict[str, str], dict[str, object]]]:
    """The model's file, its tensors' roles as far as they are known, and what it is."""
    path = Path(what)
    if path.suffix in (".safetensors", ".npz") or path.is_file():
        if not path.is_file():
            raise BadFile("UNREADABLE", f"There is no file {what}.", "Check the path.")
        yield path, {}, {"file": what}
        return
    name, _, text = what.partition(":")
    if text and not text.isdecimal():
        raise BadInput("BAD_ROUND", f"'{text}' is no round.", "The model that round 3 made is JOB:3.")

    async def work(network: AsyncNetwork) -> tuple[AsyncJob, int, Path]:
        found = await network.job(name)
        made_by = int(text) if text else (await found.status()).model_round
        with transferring() as progress:
            _, kept = await found.model_file(made_by, progress=progress)
        return found, made_by, kept

    found, made_by, kept = client.run(work)
    roles = {each.name: each.role for each in found.rules.schema.tensors}
    with TemporaryDirectory(dir=kept.parent.parent, prefix=".look") as place:
        # Under a name that tells its kind; the home keeps the last few models only.
        linked = Path(place) / f"{made_by}.safetensors"
        os.link(kept, linked)
        yield linked, roles, {"job": found.name, "round": made_by}


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _stats_data(stats: TensorStats, roles: dict[str, str]) -> dict[str, Any]:
    return {
        "name": stats.name,
        "dtype": stats.dtype,
        "shape": list(stats.shape),
        "role": roles.get(stats.name),
        "parameters": stats.parameters,
        "norm": stats.norm if stats.norm is None or isfinite(stats.norm) else None,
        "min": stats.least,
        "max": stats.most,
        "mean": stats.mean,
        "not_finite": stats.not_finite,
    }


def _stats_row(data: dict[str, Any]) -> tuple[object, ...]:
    shape = "×".join(map(str, data["shape"])) or "scalar"
    figures = [figure(data[name]) for name in ("norm", "min", "max", "mean")]
    return (data["name"], data["dtype"], shape, data["role"], data["parameters"], *figures, data["not_finite"] or "")


def _difference_data(difference: TensorDifference) -> dict[str, Any]:
    return {
        "name": difference.name,
        "largest": difference.largest,
        "relative": difference.relative,
        "cosine": difference.cosine,
        "note": difference.note or None,
    }
