"""How the node is: for people, for load balancers, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST

from fl.kernels import KERNEL_VERSION
from node.health import SENTENCES, Syncing
from node.ports import Channel
from node.rpc.api import Api
from node.rpc.blobs import door_url
from node.rpc.problems import Problem
from node.rpc.requests import JSON, Request, Response, json_response
from node.rpc.views import AliveView, DataView, NodeStatusView, PeerView, PoolView, QuorumView, ReadyView, SyncView


async def status(api: Api, request: Request) -> Response:
    node, replica, health = api.node, api.node.replica, api.health
    validators, executed = replica.validators, node.executor.executed
    counts = replica.availability.counts()
    reasons = health.reasons()
    view = NodeStatusView(
        chain_id=node.genesis.chain_id.hex(),
        name=node.genesis.name,
        node=None if replica.me is None else validators.members[replica.me].name,
        key=node.key.public.hex(),
        version=api.version,
        kernel_version=KERNEL_VERSION,
        epoch=validators.epoch,
        validators=QuorumView(n=validators.n, f=validators.f, q=validators.quorum),
        view=replica.ordering.view,
        final_height=replica.ordering.tree.root.height,
        executed_height=executed.lineage.height,
        executed_digest=executed.lineage.digest.hex(),
        state_root=executed.state_root.hex(),
        certified_height=replica.attestation.certified_height(),
        time_ms=replica.ordering.tree.root.time_ms,
        peers=[
            PeerView(
                name=member.name,
                key=member.consensus_key.hex(),
                linked=(member.consensus_key, Channel.CONSENSUS) in node.linked,
            )
            for member in validators.members
            if member.consensus_key != node.key.public
        ],
        syncing=_sync_view(health.syncing()),
        disk_full=node.disk_full,
        data=DataView(up=node.data.opened is not None, full=node.data.full, door=door_url(api, _host(request))),
        draining=node.admission.draining,
        ready=not reasons,
        reasons=[reason.value for reason in reasons],
        uptime_s=health.uptime_s,
        pool=PoolView(
            transactions=counts["pool"],
            room_bytes=replica.availability.room(),
            open_batches=counts["open"],
            uncertified_batches=counts["uncertified"],
        ),
    )
    ahead_ms = health.time_ahead_ms()
    if ahead_ms > node.genesis.params.drift_ms:
        view["time_ahead_ms"] = ahead_ms
    return json_response(view)


def _host(request: Request) -> str:
    return request.headers.get("Host", "")


def _sync_view(syncing: Syncing | None) -> SyncView | None:
    return None if syncing is None else SyncView(target=syncing.target, behind=syncing.behind, eta_s=syncing.eta_s)


async def alive(api: Api, request: Request) -> Response:
    """Says that the process answers, and no more."""
    return json_response(AliveView(status="alive"))


async def ready(api: Api, request: Request) -> Response:
    reasons = api.health.reasons()
    if reasons:
        detail = " ".join(SENTENCES[reason] for reason in reasons)
        raise Problem("NOT_READY", detail, retry_after_s=5, reasons=[reason.value for reason in reasons])
    return json_response(ReadyView(status="ready"))


async def metrics(api: Api, request: Request) -> Response:
    return Response(api.metrics.text(), CONTENT_TYPE_LATEST)


async def openapi(api: Api, request: Request) -> Response:
    return Response(api.openapi, JSON)
