from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.car import CarReader
from chain.cid import LEAF_BYTES, cid_text, is_raw
from chain.unixfs import LINKS, inner_blocks, leaf_cid, manifest_cid, manifest_of, walk, zeros_manifest
from node.data.gateway import CAR, RAW, Answer, Incomplete, Request, answer
from node.rpc.problems import Problem
from tests.ipfs.blocks import Shelf, noise

SHELF = Shelf()
DATA = noise(3 * LEAF_BYTES + 17)
ROOT = SHELF.add(DATA)
MANIFEST = manifest_of(DATA)
SMALL = SHELF.add(b"a small model")
LEAVES = [leaf_cid(MANIFEST.leaf(index)) for index in range(MANIFEST.count)]


def ask(path: str, accept: str = "", method: str = "GET", shelf: Shelf = SHELF, **headers: str) -> Answer:
    bare, _, query = path.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if accept:
        given["accept"] = accept
    return answer(Request(method, bare, {name: value for name, _, value in pairs}, given), shelf.block)


def ipfs(cid: bytes, rest: str = "") -> str:
    return f"/ipfs/{cid_text(cid)}{rest}"


def body(got: Answer) -> bytes:
    return b"".join(bytes(piece) for piece in got.body)


def archived(got: Answer) -> list[bytes]:
    """CIDs of the blocks of an archive, each checked."""
    reader = CarReader()
    cids = [cid for piece in got.body for cid, _ in reader.feed(piece)]
    reader.finish()
    return cids


def refusal(path: str, accept: str = "", **more: str) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        ask(path, accept, **more)
    assert caught.value.detail
    return int(caught.value.kind.status), caught.value.code


@pytest.mark.parametrize("cid", [ROOT, SMALL, LEAVES[0], LEAVES[-1]])
def test_a_root_a_node_and_a_leaf_are_given_as_raw_blocks(cid: bytes) -> None:
    for got in (ask(ipfs(cid, "?format=raw")), ask(ipfs(cid), RAW)):
        assert got.status is HTTPStatus.OK
        block = body(got)
        assert block == bytes(SHELF.blocks[cid])
        name = cid_text(cid)
        assert got.headers["Content-Type"] == RAW
        assert got.headers["Content-Length"] == str(len(block))
        assert got.headers["ETag"] == f'"{name}.raw"'
        assert got.headers["Cache-Control"] == "public, max-age=29030400, immutable"
        assert got.headers["X-Ipfs-Path"] == f"/ipfs/{name}"
        assert got.headers["X-Ipfs-Roots"] == name
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert got.headers["Content-Disposition"] == f'attachment; filename="{name}.bin"'


def test_an_archive_holds_the_tree_depth_first() -> None:
    for got in (ask(ipfs(ROOT, "?format=car")), ask(ipfs(ROOT), f"{CAR}; version=1; order=dfs; dups=n")):
        assert got.headers["Content-Type"] == f"{CAR}; version=1; order=dfs; dups=n"
        assert got.headers["Content-Disposition"] == f'attachment; filename="{cid_text(ROOT)}.car"'
        assert "Content-Length" not in got.headers
        assert archived(got) == [cid for cid, _ in walk(MANIFEST)]


def test_an_archive_of_one_block_holds_one_block() -> None:
    assert archived(ask(ipfs(SMALL, "?format=car"))) == [SMALL]
    assert archived(ask(ipfs(LEAVES[2], "?format=car"))) == [LEAVES[2]]
    assert archived(ask(ipfs(ROOT, "?format=car&dag-scope=block"))) == [ROOT]
    assert archived(ask(ipfs(ROOT, "?format=car&dag-scope=entity"))) == [ROOT, *LEAVES]


@pytest.mark.parametrize(
    ("wanted", "leaves"),
    [
        ("0:*", [0, 1, 2, 3]),
        ("0:0", [0]),
        (f"{LEAF_BYTES - 1}:{LEAF_BYTES}", [0, 1]),
        (f"{LEAF_BYTES}:{2 * LEAF_BYTES - 1}", [1]),
        ("-17:*", [3]),
        ("-18:*", [2, 3]),
        ("-18:-18", [2]),
        ("0:-18", [0, 1, 2]),
        (f"{2 * LEAF_BYTES}:9999999999999", [2, 3]),
        ("-9999999999999:0", [0]),
        ("5:2", []),
    ],
)
def test_an_archive_of_some_bytes_holds_what_verifies_them_and_no_more(wanted: str, leaves: list[int]) -> None:
    got = ask(ipfs(ROOT, f"?format=car&entity-bytes={wanted}"))
    assert archived(got) == [ROOT, *(LEAVES[index] for index in leaves)]


def test_each_part_of_a_tree_has_its_own_tag() -> None:
    queries = ["", "&dag-scope=block", "&dag-scope=entity", "&entity-bytes=0:5", "&entity-bytes=5:*", "&car-dups=y"]
    tags = {ask(ipfs(ROOT, f"?format=car{query}")).headers["ETag"] for query in queries}
    tags |= {ask(ipfs(cid, "?format=raw")).headers["ETag"] for cid in (ROOT, SMALL)}
    assert len(tags) == len(queries) + 2


def test_a_block_that_occurs_again_is_sent_again_only_on_demand() -> None:
    shelf = Shelf()
    root = shelf.add(bytes(3 * LEAF_BYTES))
    leaf = leaf_cid(manifest_of(bytes(LEAF_BYTES)).digests)
    once = ask(ipfs(root, "?format=car"), shelf=shelf)
    assert archived(once) == [root, leaf]
    each = ask(ipfs(root, "?format=car&car-dups=y"), f"{CAR};dups=n", shelf=shelf)
    assert each.headers["Content-Type"].endswith("dups=y")
    assert archived(each) == [root, leaf, leaf, leaf]


def test_two_levels_of_nodes_are_walked_whole_or_in_part() -> None:
    manifest = zeros_manifest(b"x", (2 * LINKS + 1) * LEAF_BYTES)
    root = manifest_cid(manifest)
    shelf = Shelf()
    shelf.blocks |= dict(inner_blocks(manifest))
    shelf.blocks[leaf_cid(manifest.leaf(0))] = b"x".ljust(LEAF_BYTES, b"\0")
    shelf.blocks[leaf_cid(manifest.leaf(1))] = bytes(LEAF_BYTES)
    inner = [cid for cid, _ in inner_blocks(manifest)]
    assert len(inner) == 4
    assert set(archived(ask(ipfs(root, "?format=car"), shelf=shelf))) == set(shelf.blocks)
    at_end = archived(ask(ipfs(root, "?format=car&entity-bytes=-1:*"), shelf=shelf))
    assert at_end == [root, inner[3], leaf_cid(manifest.leaf(1))]
    below = archived(ask(ipfs(inner[1], "?format=car&entity-bytes=0:1"), shelf=shelf))
    assert below == [inner[1], leaf_cid(manifest.leaf(0))]


def test_a_head_is_the_same_without_the_body() -> None:
    for query in ("?format=raw", "?format=car"):
        get, head = ask(ipfs(ROOT, query)), ask(ipfs(ROOT, query), method="HEAD")
        assert head.headers == get.headers
        assert head.status is get.status
        assert body(head) == b""


def test_what_a_client_has_already_is_not_sent_again() -> None:
    tag = ask(ipfs(ROOT, "?format=raw")).headers["ETag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        got = ask(ipfs(ROOT, "?format=raw"), if_none_match=known)
        assert got.status is HTTPStatus.NOT_MODIFIED
        assert got.headers["ETag"] == tag
        assert body(got) == b""
    assert ask(ipfs(ROOT, "?format=car"), if_none_match=tag).status is HTTPStatus.OK


def test_clients_find_the_gateway_by_the_empty_block() -> None:
    assert body(ask("/ipfs/bafkqaaa?format=raw")) == b""
    assert ask("/ipfs/bafkqaaa", RAW, "HEAD").status is HTTPStatus.OK
    reader = CarReader()
    assert reader.feed(body(ask("/ipfs/bafkqaaa?format=car"))) == []
    assert reader.roots == (b"\x01\x55\x00\x00",)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (f"{RAW}, */*", RAW),
        (f"text/html, {CAR};q=0.5, {RAW};q=0.4", f"{CAR}; version=1; order=dfs; dups=n"),
        (f"{CAR};q=0.1,{RAW}", RAW),
        (f'{CAR};dups="y";Version=1', f"{CAR}; version=1; order=dfs; dups=y"),
        (f"{CAR};order=foo, {CAR};order=dfs;dups=y;q=0.5", f"{CAR}; version=1; order=dfs; dups=y"),
        (f"{CAR};version=2, {RAW};q=0.1", RAW),
        (f"{CAR};order=unk", f"{CAR}; version=1; order=dfs; dups=n"),
    ],
)
def test_the_best_of_what_is_accepted_is_given(accept: str, media_type: str) -> None:
    assert ask(ipfs(ROOT), accept).headers["Content-Type"] == media_type


def test_the_address_counts_before_what_is_accepted() -> None:
    assert ask(ipfs(ROOT, "?format=raw"), CAR).headers["Content-Type"] == RAW
    assert ask(ipfs(ROOT, "?format=car"), "text/html").headers["Content-Type"].startswith(CAR)
    assert "Content-Location" not in ask(ipfs(ROOT, "?format=raw")).headers
    assert ask(ipfs(ROOT), RAW).headers["Content-Location"] == ipfs(ROOT, "?format=raw")
    located = ask(ipfs(ROOT, "?entity-bytes=0:5"), f"{CAR};dups=y").headers["Content-Location"]
    assert located == ipfs(ROOT, "?entity-bytes=0%3A5&format=car&car-dups=y")


def test_a_file_name_cannot_leave_its_header() -> None:
    got = ask(ipfs(SMALL, '?format=raw&filename=a"b\r\nSet-Cookie: модель.bin'))
    assert got.headers["Content-Disposition"].startswith('attachment; filename="a_b__Set-Cookie: ______.bin"; ')
    assert "\n" not in got.headers["Content-Disposition"]


def test_refusals_say_what_is_wrong() -> None:
    unknown = ipfs(leaf_cid(bytes(32)), "?format=raw")
    assert refusal(unknown) == (404, "UNKNOWN_BLOB")
    assert refusal(unknown, method="HEAD") == (404, "UNKNOWN_BLOB")
    assert refusal(unknown, cache_control="only-if-cached") == (412, "NOT_CACHED")
    assert refusal(ipfs(ROOT)) == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT), "*/*") == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT), "text/html") == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT), f"{RAW};q=0") == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT, "?format=tar")) == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT), f"{CAR};version=2") == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT, "?format=car&car-order=bfs")) == (406, "NOT_ACCEPTABLE")
    assert refusal(ipfs(ROOT, "?format=car&car-dups=maybe")) == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT, "?format=car&dag-scope=some")) == (400, "BAD_PARAMETER")
    for outside in ("x", "1", "1:", ":", f"{len(DATA)}:*", f"0:-{len(DATA) + 1}", "1:2:3", "*:1"):
        assert refusal(ipfs(ROOT, f"?format=car&entity-bytes={outside}")) == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT, "/weights?format=raw")) == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT, "/weights?format=car")) == (404, "UNKNOWN_PATH")
    assert refusal("/ipfs/?format=raw") == (400, "BAD_PARAMETER")
    assert refusal("/ipfs/QmYwAPJzv5CZsnA?format=raw") == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT, "?format=raw"), service_worker="script") == (400, "BAD_PARAMETER")
    assert refusal(ipfs(ROOT, "?format=raw"), method="POST") == (405, "METHOD_NOT_ALLOWED")


def test_an_empty_file_has_an_archive_too() -> None:
    shelf = Shelf()
    empty = shelf.add(b"")
    assert is_raw(empty)
    for query in ("", "&entity-bytes=0:*", "&entity-bytes=0:-1"):
        assert archived(ask(ipfs(empty, f"?format=car{query}"), shelf=shelf)) == [empty]


def test_an_archive_that_cannot_be_finished_is_broken_off() -> None:
    shelf = Shelf()
    root = shelf.add(DATA)
    got = ask(ipfs(root, "?format=car"), shelf=shelf)
    pieces = [next(got.body) for _ in range(5)]
    shelf.blocks.clear()
    assert pieces
    with pytest.raises(Incomplete):
        body(got)


WORDS = st.sampled_from(
    ["raw", "car", "", "1", "2", "dfs", "unk", "y", "n", "all", "block", "entity", "0:*", "-1:5", "*"]
)
PARAMETERS = ["format", "car-version", "car-order", "car-dups", "dag-scope", "entity-bytes", "filename", "other"]
TYPES = st.sampled_from([RAW, CAR, "*/*", "text/html", ""])


@settings(deadline=None)
@given(
    st.sampled_from([cid_text(ROOT), cid_text(SMALL), cid_text(LEAVES[1]), "bafkqaaa", cid_text(leaf_cid(bytes(32)))])
    | st.text(max_size=8),
    st.dictionaries(st.sampled_from(PARAMETERS), WORDS | st.text(max_size=8), max_size=4),
    st.lists(st.tuples(TYPES, st.text(';=q0.1,versiondups"', max_size=20)), max_size=3),
    st.sampled_from(["", "/", "/x", "//"]),
    st.text(max_size=8),
)
def test_whatever_is_asked_the_gateway_answers_or_refuses(
    name: str, query: dict[str, str], accepted: list[tuple[str, str]], below: str, known: str
) -> None:
    accept = ",".join(kind + rest for kind, rest in accepted)
    headers = {"accept": accept, "if-none-match": known}
    try:
        got = answer(Request("GET", f"/ipfs/{name}{below}", query, headers), SHELF.block)
    except Problem as problem:
        assert 400 <= problem.kind.status < 500
        return
    assert got.status in (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED)
    assert all(text.isprintable() and text.isascii() for text in got.headers.values())
    if got.headers.get("Content-Type", "").startswith(CAR):
        archived(got)
    else:
        assert len(body(got)) == int(got.headers.get("Content-Length", "0"))
