"""The doors of a chainlet's nodes: blobs put by leaves, kept in memory, given by ranges. A door can be told to lie."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from chain.cid import cid_text, parse_cid
from chain.codec import decode, encode
from chain.unixfs import Manifest, manifest_cid, manifest_of
from fl.access import Action, SignedLeave, verify_leave
from fl.blobs import PUBLIC_KINDS, BlobKind

LEASE_MS = 60_000


@dataclass(frozen=True)
class Held:
    data: bytes | memoryview
    kind: BlobKind
    owner: bytes
    manifest: Manifest


@dataclass
class Staged:
    manifest: Manifest
    kind: BlobKind
    owner: bytes
    leaves: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Door:
    """What one node holds, what it was asked, and what is wrong with it."""

    may: Callable[[bytes, bytes], bool]
    """Whether a key speaks for an account."""
    sees_all: Callable[[bytes], bool] = lambda account: False
    """Whether an account is an auditor's."""
    url: str = ""
    whole: dict[bytes, Held] = field(default_factory=dict)
    staged: dict[bytes, Staged] = field(default_factory=dict)
    offered: list[bytes] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    down: bool = False
    full: bool = False
    busy_for: int = 0
    stalls: bool = False
    wrong_leaves: bool = False
    wrong_manifest: bool = False
    wrong_size: bool = False
    refuses: str = ""
    forgets_once: bool = False
    takes_at_most: int | None = None
    """Leaves; then it is down."""
    gives_at_most: int | None = None
    published: Callable[[bytes], None] = lambda cid: None
    keeps: bool = True
    """Else it calls whole what it has thrown away: for tests that count memory."""
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        blob = "/v1/blobs/{cid}"
        app.add_routes(
            [
                self._route("GET", "/v1/blobs", self._list),
                self._route("POST", blob, self._offer),
                self._route("PUT", blob + "/leaves/{index}", self._take),
                self._route("GET", blob + "/manifest", self._manifest),
                self._route("GET", blob + "/stat", self._stat),
                self._route("GET", blob, self._give),
            ]
        )
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    def hold(self, data: bytes | memoryview, kind: BlobKind = BlobKind.MODEL, owner: bytes = b"") -> bytes:
        manifest = manifest_of(data)
        cid = manifest_cid(manifest)
        self.whole[cid] = Held(data, kind, owner, manifest)
        return cid

    def _route(self, method: str, path: str, handler: Any) -> web.RouteDef:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if self.down:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if self.stalls:
                await asyncio.sleep(30)
            if self.busy_for:
                self.busy_for -= 1
                return problem("BUSY", 503, {"Retry-After": "0.05"})
            answer: web.StreamResponse = await handler(request)
            return answer

        return web.route(method, path, guarded)

    def _account(self, request: web.Request, action: Action, cid: bytes, size: int = 0, kind: int = 0) -> bytes | None:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Quorate":
            return None
        signed = decode(SignedLeave, base64.urlsafe_b64decode(text), 512)
        leave = signed.leave
        if not verify_leave(signed) or leave.valid_until_ms < time.time_ns() // 1_000_000:
            return None
        right = (leave.action, leave.cid, leave.size_bytes, leave.kind) == (action, cid, size, kind)
        return leave.account if right and self.may(leave.account, leave.key) else None

    async def _offer(self, request: web.Request) -> web.Response:
        cid = parse_cid(request.match_info["cid"])
        manifest = decode(Manifest, await request.read(), 4 * 1024 * 1024)
        self.offered.append(cid)
        if self.full:
            return problem("DISK_FULL", 507, {"Retry-After": "0"})
        if self.refuses:
            return problem(self.refuses, 413)
        if manifest_cid(manifest) != cid:
            return problem("WRONG_MANIFEST", 422)
        accounts = {kind: self._account(request, Action.PUT, cid, manifest.size_bytes, kind) for kind in BlobKind}
        kind = next((kind for kind, account in accounts.items() if account), None)
        if kind is None:
            return problem("NO_LEAVE", 401)
        if cid not in self.whole and cid not in self.staged:
            self.staged[cid] = Staged(manifest, kind, accounts[kind] or b"")
            if manifest.size_bytes == 0:
                self._publish(cid)
        missing = bytearray(-(-manifest.count // 8))
        if cid in self.staged:
            for index in set(range(manifest.count)) - self.staged[cid].leaves.keys():
                missing[index >> 3] |= 1 << (index & 7)
        return web.json_response(
            {
                "lease_until_ms": time.time_ns() // 1_000_000 + LEASE_MS,
                "size_bytes": manifest.size_bytes,
                "leaves": manifest.count,
                "missing": base64.b64encode(missing).decode(),
                "whole": cid in self.whole,
            }
        )

    async def _take(self, request: web.Request) -> web.Response:
        cid, index = parse_cid(request.match_info["cid"]), int(request.match_info["index"])
        if self.full:
            return problem("DISK_FULL", 507, {"Retry-After": "0"})
        if self.forgets_once:
            self.forgets_once = False
            self.staged.pop(cid, None)
        staged = self.staged.get(cid)
        if staged is None:
            return problem("NO_MANIFEST", 409)
        data = await request.read()
        if manifest_of(data).digests != staged.manifest.leaf(index):
            return problem("WRONG_LEAF", 422)
        if self.takes_at_most is not None and len(self.taken) >= self.takes_at_most:
            self.down = True
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        staged.leaves[index] = data if self.keeps else b""
        self.taken.append(index)
        if len(staged.leaves) == staged.manifest.count:
            self._publish(cid)
        return web.json_response({"missing": staged.manifest.count - len(staged.leaves), "whole": cid in self.whole})

    def _publish(self, cid: bytes) -> None:
        staged = self.staged.pop(cid)
        data = b"".join(staged.leaves[index] for index in sorted(staged.leaves))
        self.whole[cid] = Held(data, staged.kind, staged.owner, staged.manifest)
        self.published(cid)

    def _readable(self, request: web.Request) -> Held | web.Response:
        cid = parse_cid(request.match_info["cid"])
        held = self.whole.get(cid)
        if held is None:
            return problem("UNKNOWN_BLOB", 404)
        account = self._account(request, Action.READ, cid)
        auditor = account is not None and self.sees_all(account)
        if held.kind not in PUBLIC_KINDS and account != held.owner and not auditor:
            return problem("UNKNOWN_BLOB", 404) if account is None else problem("BLOB_NOT_YOURS", 403)
        return held

    async def _manifest(self, request: web.Request) -> web.Response:
        held = self._readable(request)
        if isinstance(held, web.Response):
            return held
        manifest = manifest_of(bytes(held.data) + b"!") if self.wrong_manifest else held.manifest
        if self.wrong_size:
            manifest = replace(manifest, size_bytes=manifest.size_bytes - 1)
        return web.Response(body=encode(manifest))

    async def _give(self, request: web.Request) -> web.Response:
        held = self._readable(request)
        if isinstance(held, web.Response):
            return held
        if self.gives_at_most is not None and len(self.given) >= self.gives_at_most:
            self.down = True
        span = request.http_range
        start, stop = span.start or 0, span.stop if span.stop is not None else len(held.data)
        self.given.append(start // (1024 * 1024))
        part = bytes(held.data[start:stop])
        if self.wrong_leaves:
            part = part[:-1] + bytes([part[-1] ^ 1])
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(held.data)}"}
        return web.Response(status=206, body=part, headers=headers)

    async def _stat(self, request: web.Request) -> web.Response:
        held = self._readable(request)
        if isinstance(held, web.Response):
            return held
        return web.json_response(_view(parse_cid(request.match_info["cid"]), held))

    async def _list(self, request: web.Request) -> web.Response:
        limit, after = int(request.query["limit"]), request.query.get("cursor", "")
        account = self._account(request, Action.READ, bytes(36))
        seen = [cid for cid, held in self.whole.items() if held.kind in PUBLIC_KINDS or held.owner == account]
        ordered = sorted((cid_text(cid), cid) for cid in seen)
        page = [entry for entry in ordered if entry[0] > after][:limit]
        following = page[-1][0] if len(page) == limit else None
        return web.json_response({"blobs": [_view(cid, self.whole[cid]) for _, cid in page], "next": following})


def _view(cid: bytes, held: Held) -> dict[str, Any]:
    return {
        "cid": cid_text(cid),
        "kind": held.kind.name.lower(),
        "size_bytes": len(held.data),
        "leaves": held.manifest.count,
        "account": held.owner.hex() or None,
    }


def problem(code: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
    body = {"code": code, "title": code, "status": status, "detail": code}
    return web.json_response(body, status=status, headers=headers)
