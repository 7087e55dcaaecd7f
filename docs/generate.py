"""Writes the two references that come from the program itself: docs/sdk.md, from signatures and docstrings of what
`import quorate` offers, and docs/rpc-reference.md, from the node's OpenAPI document.

    python docs/generate.py            # writes them: make docs
    python docs/generate.py --check    # exit code 1 if they are not what the program says

Sources are read, never imported, for the SDK: the faces of frameworks are described where no framework is installed.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SDK = ROOT / "docs" / "sdk.md"
RPC = ROOT / "docs" / "rpc-reference.md"
FACE = "quorate"
PLAIN_FACE = "fl.client.sync"
LINE = 100

GENERATED = "<!-- Written by docs/generate.py; `make docs` writes it again. -->"

SDK_HEAD = f"""# The SDK

{GENERATED}

What `import quorate` offers. [The first hour](tutorial.md) shows it at work, and lists what can go wrong
[with the next step](tutorial.md#when-something-fails).

There are two faces over one core. The plain one, described here, works in scripts, notebooks and running event loops
alike: it has a loop of its own. The other one is for programs that await: `connect_async` gives an `AsyncNetwork`, and
what it gives has the same methods and properties. There every method is awaited but those marked *not awaited*, and
loops over tasks are `async for`:

```python
async with await quorate.connect_async("consortium.toml", key="alice.key") as network:
    job = await network.job("digits")
    async for task in job.tasks():
        await task.submit(delta=..., examples=...)
```

What a class has beyond this page is for the SDK itself, and may change.
"""

CHAPTERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Connecting", ("connect", "connect_async", "Network", "AsyncNetwork")),
    ("Jobs", ("Job", "Task", "Evaluation", "draft_job")),
    ("Files and data sets", ("Blobs", "Datasets", "BlobReceipt", "BlobStat", "Fetched")),
    ("What is kept and told", ("Receipt", "RoundReport")),
    ("Keys", ("load_key", "new_key")),
    (
        "Errors",
        ("QuorateError", "BadInput", "BadFile", "Unreachable", "RefusedByChain", "TimedOut", "Unverified"),
    ),
)
OTHERS = "More"
"""The chapter of public names that no other chapter has."""

BEYOND = {"draft_job": "fl.client.jobdraft"}
"""Described with the public names though it is none, for `Network.create_job` takes what it takes."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Found:
    """A public name: where it is defined, and how."""

    module: str
    node: Definition

    @property
    def text(self) -> str:
        return docstring(self.node)


def docstring(node: Definition | ast.Module) -> str:
    """Less the indentation of its own place, so that what is indented further is code even if all of it is."""
    text = ast.get_docstring(node, clean=False) or ""
    margin = " " * (node.body[0].col_offset if text else 0)
    return "\n".join(line.removeprefix(margin) for line in text.splitlines()).strip()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(source(module).read_text(encoding="utf-8"))


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> dict[str, tuple[str, str]]:
    """Name here -> module there and name there."""
    found = {}
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module, alias.name)
    return found


def find(module: str, name: str) -> Found | None:
    """Where a name that this module has is defined; None for what is neither a class nor a function."""
    for node in tree(module).body:
        if isinstance(node, Definition) and node.name == name:
            return Found(module, node)
    there = imports(module).get(name)
    if there is None or not source(there[0]).exists():
        return None
    return find(*there)


def public_names(module: str) -> list[str]:
    """Of `__all__`; a module without one offers whatever it defines or imports without an underscore."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["__all__"]:
            return sorted(ast.literal_eval(node.value))
    own = [node.name for node in tree(module).body if isinstance(node, Definition)]
    passed_on = [name for name, there in imports(module).items() if there[0].split(".")[0] in ("fl", "quorate")]
    return sorted(name for name in {*own, *passed_on} if not name.startswith("_"))


def faces() -> list[str]:
    """The modules of frameworks beside the face itself: quorate.torch and the like."""
    return [f"{FACE}.{path.stem}" for path in sorted((ROOT / FACE).glob("*.py")) if path.stem != "__init__"]


def members(found: Found) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    assert isinstance(found.node, ast.ClassDef)
    for node in found.node.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {ast.unparse(each) for each in node.decorator_list}


def counterpart(found: Found) -> Found | None:
    """The class of the other face that this one wraps."""
    name = f"Async{found.node.name}"
    return find(PLAIN_FACE, name) if found.module == PLAIN_FACE else None


def undescribed() -> list[str]:
    """Public names without a docstring, their own or, for a member, that of the other face."""
    missing = []
    for module in (FACE, *faces()):
        if not docstring(tree(module)):
            missing.append(module)
        for name in public_names(module):
            found = find(module, name)
            if found is None:
                continue
            if not found.text:
                missing.append(f"{module}.{name}")
            if isinstance(found.node, ast.ClassDef) and not name.startswith("Async"):
                missing += [f"{name}.{each.name}" for each in members(found) if not described(found, each)]
    return missing


def described(found: Found, member: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """By its own docstring or that of the other face."""
    other = counterpart(found)
    same = [member, *(each for each in (members(other) if other else ()) if each.name == member.name)]
    return next(filter(None, map(docstring, same)), "")


# The SDK's page


def sdk_page() -> str:
    names = public_names(FACE)
    placed = {name for _, chapter in CHAPTERS for name in chapter}
    lines = [SDK_HEAD]
    for title, chapter in (*CHAPTERS, (OTHERS, tuple(name for name in names if name not in placed))):
        there = [find(BEYOND.get(name, FACE), name) for name in chapter if name in names or name in BEYOND]
        lines += chapter_text(title, there)
    for module in faces():
        there = [find(module, name) for name in public_names(module)]
        lines += chapter_text(module, there, paragraphs(docstring(tree(module))))
    return "\n".join(lines).rstrip() + "\n"


def chapter_text(title: str, there: Iterable[Found | None], says: str = "") -> list[str]:
    lines = [each for found in there if found is not None for each in definition_text(found)]
    return [f"## {title}\n", *([says] if says else []), *lines] if lines or says else []


def definition_text(found: Found) -> list[str]:
    node = found.node
    if isinstance(node, ast.ClassDef):
        return class_text(found, node)
    return [f"### {node.name}\n", code(signature(found.module, node)), paragraphs(found.text)]


def class_text(found: Found, node: ast.ClassDef) -> list[str]:
    lines = [f"### {node.name}\n", paragraphs(found.text)]
    bases = [f"`{ast.unparse(base)}`" for base in node.bases]
    if any("Error" in base for base in bases):
        lines.append(f"Is a {' and a '.join(bases)}.{exit_code(node)}\n")
    if rows := [*fields(node), *properties(found)]:
        lines += ["| | | |\n| --- | --- | --- |", *rows, ""]
    other = counterpart(found)
    awaited = {each.name for each in members(other) if isinstance(each, ast.AsyncFunctionDef)} if other else set()
    for member in shown(found):
        if not is_property(member):
            mark = "*Not awaited.* " if other is not None and member.name not in awaited else ""
            lines += [f"#### {node.name}.{member.name}\n", code(signature(found.module, member, method=True))]
            lines.append(paragraphs(mark + described(found, member)))
    return lines


def shown(found: Found) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """A class of the face that awaits is described where it differs from the plain one."""
    plain = find(PLAIN_FACE, found.node.name.removeprefix("Async"))
    same = {each.name for each in members(plain)} if plain is not None and plain.node.name != found.node.name else set()
    return (each for each in members(found) if each.name not in same)


def exit_code(node: ast.ClassDef) -> str:
    for each in node.body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "exit_code":
            return f" A command ends with exit code {ast.unparse(each.value)}."
    return ""


def is_property(member: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool({"property", "cached_property"} & decorators(member))


def fields(node: ast.ClassDef) -> Iterator[str]:
    """Of a dataclass, with what the string below a field says of it."""
    if not any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        return
    for place, each in enumerate(node.body):
        if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_"):
            after = node.body[place + 1] if place + 1 < len(node.body) else None
            says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            yield row(ast.unparse(each.target), ast.unparse(each.annotation), str(says or ""))


def properties(found: Found) -> Iterator[str]:
    for member in shown(found):
        if is_property(member):
            returned = ast.unparse(member.returns) if member.returns else ""
            yield row(member.name, returned, described(found, member))


def row(name: str, kind: str, text: str) -> str:
    kind = kind.strip("'\"").replace("|", "\\|")
    return f"| `{name}` | `{kind}` | {' '.join(text.split()).replace('|', chr(92) + '|')} |"


def signature(module: str, node: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool = False) -> str:
    """As it is called: without `self`, one argument a line where they do not fit into one."""
    listed = list(arguments(module, node.args))
    if method and "staticmethod" not in decorators(node):
        del listed[0]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    whole = f"{node.name}({', '.join(listed)}){returned}"
    if len(whole) <= LINE:
        return whole
    return f"{node.name}(\n    {(',' + chr(10) + '    ').join(listed)},\n){returned}"


def arguments(module: str, given: ast.arguments) -> Iterator[str]:
    placed = [*given.posonlyargs, *given.args]
    missing: list[ast.expr | None] = [None] * (len(placed) - len(given.defaults))
    for each, default in zip(placed, [*missing, *given.defaults], strict=True):
        yield argument(module, each, default)
    if given.vararg is not None:
        yield f"*{argument(module, given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield argument(module, each, default)
    if given.kwarg is not None:
        yield f"**{argument(module, given.kwarg, None)}"


def argument(module: str, given: ast.arg, default: ast.expr | None) -> str:
    text = f"{given.arg}: {ast.unparse(given.annotation)}" if given.annotation else given.arg
    if default is None:
        return text
    return f"{text}{' = ' if given.annotation else '='}{value(module, default).replace(chr(39), chr(34))}"


def value(module: str, expression: ast.expr) -> str:
    """What a name of a constant stands for, if it stands for something plain."""
    if isinstance(expression, ast.Name):
        for node in tree(module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == expression.id:
                return value(module, node.value)
        if (there := imports(module).get(expression.id)) and source(there[0]).exists():
            return value(there[0], ast.Name(there[1])) if find(*there) is None else expression.id
    return ast.unparse(expression)


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def paragraphs(text: str) -> str:
    """A docstring as Markdown: code stays code, the lines of other paragraphs are joined."""
    parts = []
    for block in text.split("\n\n"):
        if is_code(block):
            parts.append(code(dedent(block)).rstrip())
        else:
            parts.append(block.replace("\n", " "))
    return "\n\n".join(part for part in parts if part) + "\n"


def is_code(block: str) -> bool:
    """What is indented; and statements, which no sentence is."""
    if block and all(line.startswith("    ") for line in block.splitlines() if line):
        return True
    try:
        statements = ast.parse(block).body
    except SyntaxError:
        return False
    return any(
        isinstance(each, ast.Assign | ast.For | ast.AsyncFor)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Call))
        for each in statements
    )


# The RPC's page

RPC_HEAD = f"""# RPC reference

{GENERATED}

Every operation of a node, from the OpenAPI document that it serves at `/v1/openapi.json`. [The RPC](rpc.md) says how
they are used, and what ids, proofs, leaves, refusals and limits are.

Answers are JSON unless another media type is named. Types in italics are [below](#types). Every operation may also
answer {{always}}.
"""

Schema = Mapping[str, Any]

SUBJECTS = {
    "Transactions": ("transactions", "ingest"),
    "The chain": ("genesis", "params", "validators", "checkpoint", "blocks", "batches", "state", "accounts"),
    "Members and data sets": ("members", "datasets"),
    "Jobs": ("jobs",),
    "Events": ("events",),
    "Blobs": ("blobs", "leases", "models", "{block...}"),
    "The node": ("status", "health", "ready", "metrics", "openapi.json"),
}
"""Chapters, by the tags of their operations."""


def rpc_page() -> str:
    from node.data.door.routes import OPERATOR
    from node.rpc import openapi
    from node.rpc.routes import ADMIN
    from node.rpc.server import public_document

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    public = public_document(version)
    own = openapi.document([*ADMIN, *OPERATOR], version)
    operations = [*operations_of(public), *operations_of(own)]
    always = set.intersection(*(problem_codes(each) for _, _, each in operations))
    listed = ", ".join(f"`{code}`" for code in sorted(always))
    lines = [RPC_HEAD.format(always=listed)]
    for subject, tags in SUBJECTS.items():
        lines.append(f"## {subject}\n")
        for tag in tags:
            lines += [operation_text(*each, always) for each in operations_of(public) if tag in each[2]["tags"]]
    lines.append("## The operator's sockets\n")
    lines.append("On `admin.sock` and `data.sock` in the data directory, which only the node's own user can open.\n")
    lines += [operation_text(method, path, operation, always) for method, path, operation in operations_of(own)]
    lines.append("## Types\n")
    schemas = {**own["components"]["schemas"], **public["components"]["schemas"]}
    lines += [type_text(name, schemas[name]) for name in sorted(schemas)]
    lines.append(codes_text())
    return "\n".join(lines).rstrip() + "\n"


def operations_of(document: Schema) -> list[tuple[str, str, Schema]]:
    found = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert {each[2]["tags"][0] for each in found} <= {"admin", *(tag for tags in SUBJECTS.values() for tag in tags)}
    return found


def problem_codes(operation: Schema) -> set[str]:
    texts = (answer["description"] for status, answer in operation["responses"].items() if int(status) >= 400)
    return {code for text in texts for code in text.rstrip(".").partition(": ")[2].split(", ")}


def operation_text(method: str, path: str, operation: Schema, always: set[str]) -> str:
    lines = [f"### {method} {path}\n", f"{operation['summary']}{leave(operation)}\n"]
    if about := operation.get("description"):
        lines += [f"{about}\n"]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | type | |\n| --- | --- | --- | --- |"]
        for each in parameters:
            name = f"`{each['name']}`" + (", required" if each["required"] and each["in"] != "path" else "")
            lines.append(f"| {name} | {each['in']} | {type_name(each['schema'])} | {each['description']} |")
        lines.append("")
    if body := operation.get("requestBody"):
        media = (f"`{name}`: {type_name(each['schema'])}" for name, each in body["content"].items())
        lines.append(f"Body: {'; or '.join(media)}.\n")
    lines += ["| status | answer |\n| --- | --- |"]
    for status, answer in sorted(operation["responses"].items()):
        if int(status) < 400:
            lines.append(f"| {status} | {answer['description']}{answered(answer)} |")
            continue
        phrase, _, codes = answer["description"].rstrip(".").partition(": ")
        own = [code for code in codes.split(", ") if code not in always]
        if own:
            lines.append(f"| {status} {phrase} | {', '.join(f'`{code}`' for code in own)} |")
    return "\n".join(lines) + "\n"


def leave(operation: Schema) -> str:
    needed = operation.get("security")
    if not needed:
        return ""
    return " What is not public takes a leave." if {} in needed else " Takes a leave."


def answered(answer: Schema) -> str:
    kinds = []
    for media, content in answer.get("content", {}).items():
        kind = type_name(content["schema"])
        kinds.append(kind if media == "application/json" else f"`{media}`")
    return f" {' or '.join(kinds)}" if kinds else ""


def type_name(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"*[{name}](#{name.lower()})*"
    if "anyOf" in schema:
        return " or ".join(type_name(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " \\| ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"array of {type_name(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {type_name(schema['additionalProperties'])}"
    if kind == "object" and "properties" in schema:
        inner = ", ".join(f"`{name}`: {type_name(each)}" for name, each in schema["properties"].items())
        return f"object ({inner})"
    return f"{kind}{bounds(schema)}"


def bounds(schema: Schema) -> str:
    if "contentEncoding" in schema:
        return f", {schema['contentEncoding']}"
    if "pattern" in schema:
        return f" `{schema['pattern'].replace('|', chr(92) + '|')}`"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        known = {2**64 - 1: "2^64−1", 2**63 - 1: "2^63−1", -(2**63): "−2^63"}
        return f", {known.get(low, low)} to {known.get(high, high)}"
    return f", at least {low}" if low is not None else ""


def type_text(name: str, schema: Schema) -> str:
    lines = [f"### {name}\n"]
    if says := schema.get("description"):
        lines.append(f"{says}\n")
    required = set(schema.get("required", ()))
    lines += ["| field | type |\n| --- | --- |"]
    for field, each in schema.get("properties", {}).items():
        optional = "" if field in required else ", if there is one"
        lines.append(f"| `{field}` | {type_name(each)}{optional} |")
    return "\n".join(lines) + "\n"


def codes_text() -> str:
    from fl.errors import CODES, DecidedBy
    from node.rpc.problems import PROBLEMS, kind_beside, kind_of

    lines = ["## Codes\n", "### Of requests\n", "| code | status | |\n| --- | --- | --- |"]
    lines += [f"| `{code}` | {int(kind.status)} | {kind.title} |" for code, kind in sorted(PROBLEMS.items())]
    lines += ["", "### Of transactions\n"]
    lines.append(
        "What a transaction is refused with; `quorate explain CODE` prints the same. The status is that of a "
        "submission, and in brackets that of other operations. What the state decides leaves a receipt with the code.\n"
    )
    lines += ["| code | status | |\n| --- | --- | --- |"]
    lines += [
        f"| `{name}` | {statuses(int(kind_of(name).status), int(kind_beside(name).status))} | {each.sentence} |"
        for name, each in sorted(CODES.items())
        if each.decided_by not in (DecidedBy.ROUND, DecidedBy.ITEM)
    ]
    lines += ["", "### Of rounds and evaluations\n", "Why one failed.\n", "| code | |\n| --- | --- |"]
    lines += [
        f"| `{name}` | {each.sentence} |" for name, each in sorted(CODES.items()) if each.decided_by is DecidedBy.ROUND
    ]
    return "\n".join(lines) + "\n"


def statuses(submitted: int, beside: int) -> str:
    return str(submitted) if submitted == beside else f"{submitted} ({beside})"


def main(arguments: Iterable[str]) -> int:
    pages = {SDK: sdk_page(), RPC: rpc_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the program says: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
