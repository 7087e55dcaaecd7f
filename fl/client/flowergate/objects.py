"""Flower's content-addressed objects: what a message holds, each piece named by the SHA-256 of its bytes.

    "<class> <ids of its children, comma between> <length of the body>" 0x00 <body>

An array is its `.npy` bytes in chunks: `Message` > `RecordDict` > `ArrayRecord` > `Array` > `ArrayChunk`. Bodies: a
message's metadata; JSON of names and ids for dictionaries and records of arrays; JSON of dtype, shape and the order of
chunks for an array; protobuf items for metrics and settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from fl.client.flowergate.wire import Tree

MESSAGE, RECORDS, ARRAYS = "Message", "RecordDict", "ArrayRecord"
ARRAY, CHUNK, METRICS, SETTINGS = "Array", "ArrayChunk", "MetricRecord", "ConfigRecord"
CLASSES = frozenset({MESSAGE, RECORDS, ARRAYS, ARRAY, CHUNK, METRICS, SETTINGS})

CHUNK_BYTES = 5_242_880
"""Of an array, as Flower cuts them."""

MOST_OBJECT_BYTES = 8 * 1024 * 1024
"""Of what a SuperNode sends: a chunk of its, or the names of very many arrays."""

MOST_NESTED = 8
"""Levels of objects; a message of arrays has five."""

_ID = re.compile(r"[0-9a-f]{64}")
_HEAD = re.compile(r"([A-Za-z]{1,32}) ([0-9a-f,]*) (0|[1-9][0-9]{0,11})")


class BadObject(ValueError):
    """Bytes that are no object, or not the one that was meant."""


@dataclass(frozen=True, slots=True)
class Opened:
    kind: str
    children: tuple[str, ...]
    body: memoryview


def object_id(content: bytes) -> str:
    return sha256(content).hexdigest()


def is_object_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def head(kind: str, children: Sequence[str], body_bytes: int) -> bytes:
    return f"{kind} {','.join(children)} {body_bytes}\0".encode()


def closed(kind: str, children: Sequence[str], body: bytes) -> bytes:
    return head(kind, children, len(body)) + body


def opened(content: bytes) -> Opened:
    end = content.find(b"\0")
    if end < 0:
        raise BadObject("an object without a head")
    try:
        found = _HEAD.fullmatch(str(memoryview(content)[:end], "ascii"))
    except UnicodeDecodeError:
        found = None
    if found is None:
        raise BadObject("an object with a head of another form")
    kind, listed, length = found.groups()
    children = tuple(listed.split(",")) if listed else ()
    if kind not in CLASSES:
        raise BadObject(f"an object of the class {kind}")
    if not all(map(is_object_id, children)):
        raise BadObject("an object with a child that has no id")
    body = memoryview(content)[end + 1 :]
    if len(body) != int(length):
        raise BadObject(f"an object whose body has {len(body)} bytes and says {length}")
    return Opened(kind, children, body)


def ids_in(tree: Tree) -> Iterator[str]:
    """Children before their parents, with repetitions."""
    todo: list[tuple[Tree, int, bool]] = [(tree, 1, False)]
    while todo:
        each, level, is_told = todo.pop()
        if is_told:
            yield each.object_id
            continue
        if level > MOST_NESTED:
            raise BadObject(f"objects in objects, more than {MOST_NESTED} deep")
        if not is_object_id(each.object_id):
            raise BadObject("a tree with an object that has no id")
        todo.append((each, level, True))
        todo += [(child, level + 1, False) for child in reversed(each.children)]
