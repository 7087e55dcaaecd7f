"""A frozen round becomes a model, as on every validator: its log's updates, summed by the job's rule."""

from __future__ import annotations

from chain.block import Item, ItemKind
from chain.certificate import Result
from chain.codec import encode
from chain.unixfs import cid_of
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.errors import Refused
from fl.execution import AggregationTask
from fl.jobrules import grid_of
from fl.records import JobRules
from fl.rounds import entries_of
from fl.simulation.chain import Chain


def aggregated(chain: Chain, task: AggregationTask, rules: JobRules) -> Item:
    """The result, whose blobs are the chain's from here on; the round's updates are no longer."""
    sums = Aggregation(AggregationRules(task.job, task.round, rules.schema, rules.encoding, grid_of(rules)))
    for index, entry in enumerate(entries_of(chain.read, task.job, task.round, task.size)):
        sums.add(Update(index, entry.member, entry.weight, chain.blobs.pop(entry.cid)))
    closing = sums.finish(task.log_root, chain.blobs[task.base_model])
    try:
        model = b"".join(closing.model())
        outcome = closing.closed(cid_of(model), task.base_model)
        chain.blobs[outcome.model_cid] = model
    except Refused as refused:
        outcome = closing.failed(refused.code, task.base_model)
    chain.blobs[outcome.record_cid] = outcome.record
    chain.forget_rows()
    return Item(
        ItemKind.RESULT,
        encode(
            Result(
                job=task.job,
                round=task.round,
                log_root=task.log_root,
                kernel_version=task.kernel_version,
                ok=outcome.ok,
                code=outcome.code,
                model=outcome.model_cid,
                optimizer=b"",
                record=outcome.record_cid,
            )
        ),
    )
