"""A frozen round becomes a model, as on every validator: its log's updates, aggregated by the job's rule."""

from __future__ import annotations

from collections.abc import Iterator

from chain.block import Item, ItemKind
from chain.certificate import Result
from chain.codec import encode
from chain.unixfs import cid_of
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Closing, Update
from fl.errors import Refused
from fl.execution import AggregationTask
from fl.records import JobRules
from fl.rounds import entries_of
from fl.simulation.chain import Chain
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place
from fl.updates import form_of


def aggregated(chain: Chain, task: AggregationTask, rules: JobRules, sent: dict[bytes, bytes]) -> Item:
    """The certified result, whose blobs are the chain's from here on. `sent` are the updates by their CIDs; those of
    the round are let go."""
    sums = Aggregation(AggregationRules(task.job, task.round, rules, task.step))
    sums.add(*_updates(chain, task, rules, sent))
    moments = chain.blobs[task.optimizer] if task.optimizer else None
    outcome = _closed(chain, sums.finish(task.log_root, chain.blobs[task.base_model], moments), task.base_model)
    chain.blobs[outcome.record_cid] = outcome.record
    result = Result(
        job=task.job,
        round=task.round,
        log_root=task.log_root,
        kernel_version=task.kernel_version,
        ok=outcome.ok,
        code=outcome.code,
        model=outcome.model_cid,
        optimizer=outcome.optimizer_cid,
        record=outcome.record_cid,
    )
    return Item(ItemKind.RESULT, encode(result))


def _updates(chain: Chain, task: AggregationTask, rules: JobRules, sent: dict[bytes, bytes]) -> Iterator[Update]:
    for index, entry in enumerate(entries_of(chain.leaves, task.job, task.round, task.size)):
        payload = sent.pop(entry.cid)
        header = form_of(rules, entry.group).header(Place(task.job, entry.round, entry.member))
        print_ = payload_fingerprint(payload, len(header))
        yield Update(index, entry.round, entry.member, entry.weight, entry.group, payload, print_)


def _closed(chain: Chain, closing: Closing, base: bytes) -> AggregationOutcome:
    try:
        written = closing.moments()
        moments = None if written is None else b"".join(written)
        model = b"".join(closing.model(moments))
    except Refused as refused:
        return closing.failed(refused.code, base)
    optimizer = b"" if moments is None else cid_of(moments)
    outcome = closing.closed(cid_of(model), base, optimizer)
    chain.blobs[outcome.model_cid] = model
    if moments is not None:
        chain.blobs[optimizer] = moments
    return outcome
