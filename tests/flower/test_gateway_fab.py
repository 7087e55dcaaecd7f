"""The app's bundle: what is in it, which records its client reads, and files that are none."""

from __future__ import annotations

import contextlib
import io
import struct
import tomllib
import tracemalloc
import warnings
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from fl.client.errors import BadFile, BadInput
from fl.client.flowergate.fab import build, read
from fl.client.flowergate.forms import Records
from fl.client.flowergate.patterns import Patterns
from fl.client.flowergate.toml import written

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"
PROJECT = """
[project]
name = "wards"
version = "1.2.0"
[tool.flwr.app]
publisher = "hospital"
[tool.flwr.app.components]
clientapp = "wards.client:app"
serverapp = "wards.server:app"
[tool.flwr.app.config]
lr = 0.1
[tool.flwr.app.config.optimizer]
name = "sgd"
[tool.flwr.federations.somewhere]
address = "10.1.2.3:9093"
"""


def an_app(directory: Path, client: str = "app = ClientApp()\n", project: str = PROJECT) -> Path:
    (directory / "wards").mkdir(parents=True)
    (directory / "pyproject.toml").write_text(project)
    (directory / "wards" / "__init__.py").write_text("")
    (directory / "wards" / "client.py").write_text(client)
    (directory / "wards" / "test_client.py").write_text("")
    (directory / "secrets.bin").write_bytes(b"\0")
    return directory


def test_the_same_app_is_the_same_bundle_wherever_it_is(tmp_path: Path) -> None:
    bundle = build(an_app(tmp_path / "a"))
    assert bundle.content == build(an_app(tmp_path / "b")).content
    assert (bundle.fab_id, bundle.version, bundle.client) == ("hospital/wards", "1.2.0", "wards.client:app")
    assert bundle.config == {"lr": 0.1, "optimizer.name": "sgd"}
    names = zipfile.ZipFile(io.BytesIO(bundle.content)).namelist()
    assert names == ["pyproject.toml", "wards/__init__.py", "wards/client.py", ".info/CONTENT"]


def test_addresses_of_federations_stay_at_home(tmp_path: Path) -> None:
    bundle = build(an_app(tmp_path / "a"))
    project = zipfile.ZipFile(io.BytesIO(bundle.content)).read("pyproject.toml").decode()
    assert "10.1.2.3" not in project and tomllib.loads(project)["tool"]["flwr"]["app"]["config"]["lr"] == 0.1


def test_a_bundle_that_was_written_is_read_again(tmp_path: Path) -> None:
    bundle = build(EXAMPLE)
    (tmp_path / "app.fab").write_bytes(bundle.content)
    assert read(tmp_path / "app.fab") == bundle


def test_what_gitignore_and_the_app_leave_out_is_left_out(tmp_path: Path) -> None:
    app = an_app(tmp_path / "a")
    (app / "notes").mkdir()
    (app / "notes" / "patients.json").write_text("{}")
    (app / "wards" / "big.json").write_text("{}")
    (app / "wards" / "kept.json").write_text("{}")
    (app / ".gitignore").write_text("# ours\nnotes/\n")
    with_exclude = PROJECT.replace("[tool.flwr.app]", '[tool.flwr.app]\nfab-exclude = ["wards/big.*"]')
    (app / "pyproject.toml").write_text(with_exclude)
    names = zipfile.ZipFile(io.BytesIO(build(app).content)).namelist()
    assert [name for name in names if name.endswith("json")] == ["wards/kept.json"]


def test_links_out_of_the_app_are_not_followed(tmp_path: Path) -> None:
    app = an_app(tmp_path / "a")
    (tmp_path / "secret.py").write_text("KEY = 1\n")
    (app / "wards" / "secret.py").symlink_to(tmp_path / "secret.py")
    assert b"KEY = 1" not in build(app).content


@pytest.mark.parametrize(
    ("client", "records"),
    [
        ("app = ClientApp()\n@app.train()\ndef train(m, c): ...\n", Records.MESSAGE),
        ("app = ClientApp(mods=[x])\n", Records.MESSAGE),
        ("app = ClientApp(client_fn)\n", Records.LEGACY),
        ("app = flwr.client.ClientApp(client_fn=client_fn)\n", Records.LEGACY),
        ("from elsewhere import app\n", Records.MESSAGE),
        ("this is no python", Records.MESSAGE),
    ],
)
def test_the_source_tells_which_records_the_client_reads(tmp_path: Path, client: str, records: Records) -> None:
    assert build(an_app(tmp_path / "a", client)).records() == records


@pytest.mark.parametrize(
    "without",
    ['publisher = "hospital"\n', 'version = "1.2.0"\n', 'clientapp = "wards.client:app"\n', 'name = "wards"\n'],
)
def test_an_app_that_does_not_say_what_it_is_is_refused(tmp_path: Path, without: str) -> None:
    with pytest.raises(BadInput, match="has no"):
        build(an_app(tmp_path / "a", project=PROJECT.replace(without, "")))


def test_a_directory_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no pyproject\.toml"):
        build(tmp_path)
    with pytest.raises(BadInput, match="no wards"):
        build(an_app(tmp_path / "a", project=PROJECT.replace("wards.client:app", "wards.none:app")))


def repacked(content: bytes, name: str, data: bytes) -> bytes:
    """With another file, and the list as it was."""
    before, out = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for each in {*before.namelist(), name}:
            made.writestr(each, data if each == name else before.read(each))
    return out.getvalue()


def test_files_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    content = build(EXAMPLE).content
    changed = content.replace(b"partial_fit", b"partial_fat")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("pyproject.toml", bytes(64 << 20))
    for name, data in {
        "none": b"",
        "text": b"PK and more",
        "cut": content[:-100],
        "changed": changed,
        "bomb": bomb.getvalue(),
        "unlisted": repacked(content, "wards/more.py", b""),
        "exchanged": repacked(content, "digits_app/task.py", b""),
        "large": bytes((10 << 20) + 1),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadFile):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.py", "a/b/c.py", True),
        ("*.py", "c.pyc", False),
        ("/a.py", "b/a.py", False),
        ("/a.py", "a.py", True),
        ("a/*.py", "a/b.py", True),
        ("a/*.py", "a/b/c.py", False),
        ("a/**/c.py", "a/c.py", True),
        ("a/**/c.py", "a/x/y/c.py", True),
        ("**/a", "x/a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/", "a/b", True),
        ("a/", "x/a/b", True),
        ("a/", "a", False),
        ("a", "x/a/b", True),
        ("a?c", "abc", True),
        ("[ab].py", "b.py", True),
        ("[!ab].py", "b.py", False),
        ("\\#a", "#a", True),
        ("# a", " a", False),
    ],
)
def test_patterns_fit_as_git_fits_them(pattern: str, path: str, fits: bool) -> None:
    assert Patterns([pattern]).fit(path) == fits


def test_the_last_pattern_that_fits_decides() -> None:
    assert not Patterns(["*.py", "!a.py"]).fit("a.py") and Patterns(["!a.py", "*.py"]).fit("a.py")


@pytest.mark.parametrize("name", ["pyproject.toml", "examples/flower/pyproject.toml"])
def test_toml_is_written_so_that_it_reads_the_same(name: str) -> None:
    table = tomllib.loads((EXAMPLE.parents[1] / name).read_text())
    assert tomllib.loads(written(table)) == table


def listed(files: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A bundle of just these, with a list that is true."""
    out = io.BytesIO()
    told = "\n".join(f"{name},{sha256(data).hexdigest()},{8 * len(data)}" for name, data in dict(files).items())
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", kind) as made:
        warnings.simplefilter("ignore")
        for name, data in [*files, (".info/CONTENT", told.encode())]:
            made.writestr(zipfile.ZipInfo(name), data, kind)
    return out.getvalue()


GOOD = [("pyproject.toml", PROJECT.encode()), ("wards/__init__.py", b""), ("wards/client.py", b"app = 1")]


def test_a_bundle_whose_bytes_unpack_to_more_than_it_says_fills_no_memory(tmp_path: Path) -> None:
    content = listed([*GOOD, ("wards/more.py", bytes(10))])
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    (tmp_path / "app.fab").write_bytes(with_data_of(content, b"wards/more.py", packed))
    tracemalloc.start()
    with contextlib.suppress(BadFile):
        read(tmp_path / "app.fab")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 32 << 20


def with_data_of(content: bytes, name: bytes, packed: bytes) -> bytes:
    """The same archive with other packed bytes for one file; its size and checksum stay."""
    begin = content.index(name) - 30
    data = begin + 30 + len(name)
    old = struct.unpack("<I", content[begin + 18 : begin + 22])[0]
    grown = len(packed) - old
    entry = content.index(b"PK\x01\x02")
    while content[entry + 46 : entry + 46 + len(name)] != name:
        entry = content.index(b"PK\x01\x02", entry + 4)
    changed = bytearray(content)
    changed[entry + 20 : entry + 24] = struct.pack("<I", len(packed))
    after = content.index(b"PK\x01\x02", entry + 4)
    for place in (after + 42, content.rindex(b"PK\x05\x06") + 16):
        changed[place : place + 4] = struct.pack("<I", struct.unpack("<I", content[place : place + 4])[0] + grown)
    return bytes(changed[:data] + packed + changed[data + old :])


@pytest.mark.parametrize(
    "name", ["./wards/client.py", "wards//client.py", "wards/../wards/client.py", "/x.py", "../x.py", "wards\\x.py"]
)
def test_a_file_that_is_unpacked_under_another_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "app.fab").write_bytes(listed([*GOOD, (name, b"app = 2")]))
    with pytest.raises(BadFile):
        read(tmp_path / "app.fab")


def test_a_file_that_is_there_twice_and_one_that_is_packed_strangely_are_refused(tmp_path: Path) -> None:
    (tmp_path / "good.fab").write_bytes(listed(GOOD))
    assert read(tmp_path / "good.fab").source == b"app = 1"
    (tmp_path / "twice.fab").write_bytes(listed([*GOOD, ("wards/client.py", b"app = 2")]))
    (tmp_path / "lzma.fab").write_bytes(listed(GOOD, zipfile.ZIP_LZMA))
    for name in ("twice", "lzma"):
        with pytest.raises(BadFile):
            read(tmp_path / f"{name}.fab")


def test_the_source_of_the_client_is_the_one_that_python_imports(tmp_path: Path) -> None:
    """A package goes before a module of its name."""
    (tmp_path / "app.fab").write_bytes(listed([*GOOD, ("wards/client/__init__.py", b"app = 2")]))
    assert read(tmp_path / "app.fab").source == b"app = 2"


def test_a_project_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no TOML"):
        build(an_app(tmp_path / "a", project="a = " + "[" * 100_000))
