"""The vectors of docs/encoding.md. `python -m tests.chain.vectors` prints them as golden.txt holds them."""

from __future__ import annotations

from hashlib import sha256

from chain.batch import Batch, batch_digest, sign_batch
from chain.block import EMPTY_BODY, Body, Item, ItemKind, block_digest, body_roots
from chain.certificate import Available, Executed, Finalize, Notarize, Nullify, Result, VoteKind, sign_vote
from chain.cid import raw_cid
from chain.codec import encode, pack
from chain.genesis import Params, genesis_header
from chain.hashing import Domain, signing_bytes
from chain.log import EMPTY, append, leaf_digest
from chain.transaction import account_id, sign_transaction, tx_id
from chain.tree import StateTree
from tests.chain.build import CHAIN, availability, certificate, consensus_key, genesis, key, validator_set


def vectors() -> dict[str, bytes]:
    alice = key("alice")
    block = sha256(b"block").digest()
    tx = sign_transaction(alice, CHAIN, account_id(alice.public), 5, 1_700_000_000_000, 3, b"body")
    batch = Batch(CHAIN, 0, 1, 9, 100, 1_124, (encode(tx),))
    cid = raw_cid(b"model")
    result = Result(sha256(b"job").digest(), 4, sha256(b"log").digest(), 1, True, "", cid, b"", cid)
    frontier = EMPTY
    for entry in (b"a", b"b", b"c"):
        frontier, _ = append(frontier, leaf_digest(entry))
    body = Body((block,), (Item(ItemKind.RESULT, encode(result)),))
    numbers = tuple(sign * 2**power - (sign > 0) for sign in (1, -1) for power in (7, 8, 16, 32, 63))
    nullify = encode(Nullify(300))
    available = encode(Available(block, 0, 1, 9, 100, 1_124, 70_000, 300))
    return {
        "plain integers": pack(numbers),
        "plain rest": pack((None, True, False, b"\x00\xff", "é", (), ((),))),
        "public key": alice.public,
        "account id": account_id(alice.public),
        "transaction": encode(tx),
        "transaction id": tx_id(tx),
        "batch digest": batch_digest(batch),
        "batch signature": sign_batch(consensus_key(1), batch).signature,
        "notarize": encode(Notarize(300, 299, block)),
        "nullify": nullify,
        "finalize": encode(Finalize(300, block)),
        "available": available,
        "executed": encode(Executed(12, block, sha256(b"root").digest())),
        "result": encode(result),
        "nullify signed bytes": signing_bytes(Domain.NULLIFY, CHAIN, 2, nullify),
        "nullify vote": encode(sign_vote(consensus_key(2), CHAIN, VoteKind.NULLIFY, 2, nullify, 2)),
        "nullify certificate": encode(certificate(validator_set(4), VoteKind.NULLIFY, nullify)),
        "held vote": encode(sign_vote(consensus_key(2), CHAIN, VoteKind.HELD, 0, available, 2)),
        "availability certificate": encode(availability(validator_set(4), available)),
        "empty body roots": b"".join(body_roots(EMPTY_BODY)),
        "body roots": b"".join(body_roots(body)),
        "parameters": encode(Params()),
        "validator set digest": validator_set(4).digest(),
        "chain id": genesis().chain_id,
        "genesis header": encode(genesis_header(genesis())),
        "genesis block digest": block_digest(genesis_header(genesis())),
        "empty log root": EMPTY.root(),
        "log of a, b, c": encode(frontier),
        "log root of a, b, c": frontier.root(),
        "empty state root": StateTree().root,
        "state root of a = 1": StateTree([(b"a", b"1")]).root,
        "raw cid of 'model'": cid,
    }


def golden_text() -> str:
    return "".join(f"{name}\n    {data.hex()}\n" for name, data in vectors().items())


if __name__ == "__main__":
    print(golden_text(), end="")
