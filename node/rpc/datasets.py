"""The data sets that members have registered, by the newest executed state."""

from __future__ import annotations

from typing import TypedDict

from chain.codec import decode
from fl.records import Dataset
from fl.state import DATASETS, dataset_key, read_record
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import LIMIT, Request, Response, digest_cursor, digest_param, json_response
from node.rpc.schema import U64, CidText, Hex, HexDigest
from node.rpc.views import cid_or_none

DATASET = digest_param("dataset", "A data set's id.")
AFTER = digest_cursor()


class DatasetView(TypedDict):
    """`cid` is null where no bytes are named; `stored`: the validators keep them until it is withdrawn. `examples`
    is how many it holds, as its owner says."""

    id: HexDigest
    owner: HexDigest
    name: str
    cid: CidText | Hex | None
    size_bytes: U64
    examples: U64
    stored: bool
    schema: str
    policy: str
    licence: str
    height: U64
    withdrawn_height: U64 | None


class DatasetsView(TypedDict):
    """`height` is that of the state listed."""

    datasets: list[DatasetView]
    next: HexDigest | None
    height: U64


async def datasets(api: Api, request: Request) -> Response:
    rows = api.node.store.state_rows(DATASETS, dataset_key(request[AFTER] or b""))
    views: list[DatasetView] = []
    following = None
    for key, data in rows:
        identity = key[len(DATASETS) :]
        if len(views) == request[LIMIT]:
            following = identity.hex()
            break
        views.append(_view(identity, decode(Dataset, data, len(data))))
    return json_response(DatasetsView(datasets=views, next=following, height=api.executed_height))


async def dataset(api: Api, request: Request) -> Response:
    identity = request[DATASET]
    found = read_record(api.node.store.state, Dataset, dataset_key(identity))
    if found is None:
        raise Problem.beside("UNKNOWN_DATASET")
    return json_response(_view(identity, found))


def _view(identity: bytes, entry: Dataset) -> DatasetView:
    return DatasetView(
        id=identity.hex(),
        owner=entry.owner.hex(),
        name=entry.name,
        cid=cid_or_none(entry.cid),
        size_bytes=entry.size_bytes,
        examples=entry.examples,
        stored=entry.stored,
        schema=entry.schema,
        policy=entry.policy,
        licence=entry.licence,
        height=entry.height,
        withdrawn_height=entry.withdrawn_height or None,
    )
