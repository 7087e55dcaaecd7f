"""Blobs are behind the data process's door: whoever asks for one here is sent there, with what it asked for."""

from __future__ import annotations

from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import TEXT, Param, Request, Response

PLACE = Param(
    "place", "path", str, {"type": "string", "minLength": 1}, "The rest of the path: what the other door is asked for."
)

_ANYWHERE = frozenset({"", "0.0.0.0", "::"})


async def elsewhere(api: Api, request: Request) -> Response:
    """307 keeps method and body; of the body nothing is read here."""
    url = door_url(api, request.headers.get("Host", ""))
    if url is None:
        raise Problem("DATA_DOWN")
    return Response(b"", TEXT, 307, {"Location": url + request.target})


def door_url(api: Api, asked_host: str) -> str | None:
    """Where clients put and get blobs; None while the data process is not at work. A door that listens everywhere is
    at the host that the client has found."""
    opened = api.node.data.opened
    if opened is None:
        return None
    if api.door_url:
        return api.door_url
    host = opened.door_host
    if host in _ANYWHERE:
        host = _bare(asked_host) or "127.0.0.1"
    elif ":" in host:
        host = f"[{host}]"
    return f"{'https' if api.tls else 'http'}://{host}:{opened.door_port}"


def _bare(authority: str) -> str:
    """Without its port."""
    if authority.startswith("["):
        return authority.partition("]")[0] + "]"
    return authority.partition(":")[0]
