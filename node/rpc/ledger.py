"""Blocks, batches, certificates and validators: the chain itself, in JSON and in the bytes that were signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from chain.block import EMPTY_BODY, Block, block_digest
from chain.certificate import Certificate
from chain.codec import encode
from chain.genesis import genesis_header
from chain.light import BlockBundle, HandOver
from chain.log import prove
from node.executor import BLOCKS_LOG
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import (
    LIMIT,
    Request,
    Response,
    digest_param,
    json_response,
    number_cursor,
    number_param,
    number_query,
    raw,
)
from node.rpc.views import (
    BlockProofView,
    BlocksView,
    CheckpointView,
    ParamsView,
    block_view,
    in_base64,
    validators_view,
)

HEIGHT = number_param("height", "Of a block; 0 is the genesis.")
BATCH = digest_param("digest", "The digest that a block names the batch by.")
BELOW = number_cursor("`next` of the page before.")
EPOCH = number_query("epoch", "The one in office unless named.", None)


async def genesis(api: Api, request: Request) -> Response:
    return raw(encode(api.node.genesis))


async def params(api: Api, request: Request) -> Response:
    return json_response(ParamsView(params=asdict(api.node.genesis.params)))


async def validators(api: Api, request: Request) -> Response:
    newest = api.node.replica.validators.epoch
    epoch = newest if request[EPOCH] is None else request[EPOCH]
    found = api.node.sets.get(epoch or 0)
    if found is None or found.epoch > newest:
        raise Problem("UNKNOWN_EPOCH", f"Epoch {newest} is in office.")
    return json_response(validators_view(found))


async def checkpoint(api: Api, request: Request) -> Response:
    """Of a height that this node can prove states of, or the newest it has heard of."""
    certificate, executed = api.certified()
    return json_response(
        CheckpointView(
            epoch=certificate.epoch,
            height=executed.height,
            block=executed.block.hex(),
            state_root=executed.state_root.hex(),
            certificate=in_base64(encode(certificate)),
            handovers=[in_base64(encode(each)) for each in _hand_overs(api, certificate.epoch)],
        )
    )


def _hand_overs(api: Api, epoch: int) -> Iterator[HandOver]:
    """From the genesis to this epoch."""
    store = api.node.store
    for number in range(api.node.genesis.validator_set.epoch, epoch):
        height = store.last_height_of(number)
        block = store.block(height) if height is not None else None
        finalization = store.finalization(height) if height is not None else None
        if block is None or finalization is None:
            raise Problem("NOT_PROVEN_YET", f"This node has not executed the last block of epoch {number}.")
        yield HandOver(block.header, finalization, api.node.sets[number + 1])


async def blocks(api: Api, request: Request) -> Response:
    newest = api.executed_height
    top = newest if request[BELOW] is None else min(newest, request[BELOW] or 0)
    low = max(0, top - request[LIMIT] + 1)
    found = [*([_genesis_block(api)] if low == 0 else []), *api.node.store.blocks(max(1, low), top)]
    views = [block_view(block, api.node.store.finalization(block.header.height)) for block in reversed(found)]
    return json_response(BlocksView(blocks=views, next=low - 1 if low > 0 else None))


async def block(api: Api, request: Request) -> Response:
    found = _block(api, request[HEIGHT])
    return json_response(block_view(found, _finalization(api, request[HEIGHT])))


async def block_raw(api: Api, request: Request) -> Response:
    return raw(encode(_block(api, request[HEIGHT])))


async def finalization_raw(api: Api, request: Request) -> Response:
    height = request[HEIGHT]
    _block(api, height)
    own = _finalization(api, height)
    if own is None:
        later = api.node.store.next_finalization(height) if height > 0 else None
        where = f"; that of block {later[0]} makes it final" if later is not None else ""
        raise Problem("NO_FINALIZATION", f"Block {height} has no finalization of its own{where}.")
    return raw(encode(own))


async def block_proof(api: Api, request: Request) -> Response:
    """That the block of this height has this digest, under a certified block above it."""
    height = request[HEIGHT]
    wanted = block_digest(_block(api, height).header)
    certificate, executed = api.certified()
    if height >= executed.height:
        raise Problem("NOT_PROVEN_YET", f"Blocks below {executed.height} can be proven at this time.")
    header = _block(api, executed.height).header
    store = api.node.store
    proof = prove(header.height, height, lambda level, index: store.log_node(BLOCKS_LOG, level, index))
    bundle = BlockBundle(height, wanted, proof, header, certificate)
    return json_response(BlockProofView(height=height, digest=wanted.hex(), bundle=in_base64(encode(bundle))))


async def batch_raw(api: Api, request: Request) -> Response:
    signed = api.node.batches.read(request[BATCH])
    if signed is None:
        raise Problem("UNKNOWN_BATCH")
    return raw(signed.encoded)


def _genesis_block(api: Api) -> Block:
    return Block(genesis_header(api.node.genesis), EMPTY_BODY)


def _block(api: Api, height: int) -> Block:
    if height == 0:
        return _genesis_block(api)
    found = api.node.store.block(height) if height <= api.executed_height else None
    if found is None:
        raise Problem("UNKNOWN_BLOCK", f"The newest block executed here is {api.executed_height}.")
    return found


def _finalization(api: Api, height: int) -> Certificate | None:
    return api.node.store.finalization(height) if height > 0 else None
