"""The OpenAPI document, made from the table of routes and the types of the answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from node.rpc.problems import MEDIA_TYPE, kind_beside
from node.rpc.requests import JSON, MSGPACK, Param
from node.rpc.schema import Components, Schema
from node.rpc.table import Answer, Route
from node.rpc.views import ProblemView

_ALWAYS = ("RATE_LIMITED", "TOO_MANY_CONNECTIONS", "INTERNAL")
_OF_BODIES = ("BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "TOO_SLOW", "BUSY", "EXPECTATION_FAILED")

_INTRODUCTION = (
    "What a validator of a quorate chain answers to clients. Ids and digests are lower-case hex, CIDs their text, "
    "binary records base64 of the canonical encoding, times milliseconds since 1970. Refusals are problem documents "
    "(RFC 9457) with a stable `code`."
)


_LEAVE = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "`Quorate` and, in base64url, the canonical encoding of a SignedLeave: what a member may do with a "
    "blob, until when, under the member's key.",
}


def document(routes: Iterable[Route[Any]], version: str, elsewhere: Iterable[Route[Any]] = ()) -> Schema:
    """`elsewhere`: routes to which this address redirects."""
    components = Components()
    problem = components.of(ProblemView)
    paths: dict[str, Schema] = defaultdict(dict)
    for route in (*routes, *(_redirected(route) for route in elsewhere)):
        # The document's language has no word for the rest of a path.
        paths[route.path.replace("...}", "}")][route.method.lower()] = _operation(route, components, problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": "quorate node", "version": version, "description": _INTRODUCTION},
        "paths": dict(paths),
        "components": {"schemas": components.schemas, "securitySchemes": {"leave": _LEAVE}},
    }


def _redirected(route: Route[Any]) -> Route[Any]:
    away = {307: Answer(JSON, None, "The same target at the door for blobs, in `Location`.")}
    return replace(route, answers={**route.answers, **away}, problems=(*route.problems, "DATA_DOWN"))


def _operation(route: Route[Any], components: Components, problem: Schema) -> Schema:
    operation: Schema = {
        "summary": route.summary,
        "operationId": _name(route),
        "tags": [route.tag],
        "responses": _responses(route, components, problem),
    }
    if route.params:
        operation["parameters"] = [_parameter(param) for param in route.params]
    if route.body is not None:
        content = {media: {"schema": schema} for media, (schema, _) in route.body.media.items()}
        operation["requestBody"] = {"required": True, "content": content}
    if route.leave:
        # What is public is read without one.
        operation["security"] = [{"leave": []}, {}] if route.method == "GET" else [{"leave": []}]
    if route.stream is not None:
        operation["description"] = route.stream.about
        operation["x-websocket"] = True
    return operation


def _name(route: Route[Any]) -> str:
    words = [segment.strip("{.}").replace(".", "_") for segment in route.path.split("/") if segment and segment != "v1"]
    return "_".join([route.method.lower(), *words])


def _parameter(param: Param[Any]) -> Schema:
    return {
        "name": param.name,
        "in": param.where,
        "required": param.required,
        "description": param.about,
        "schema": dict(param.schema),
    }


def _responses(route: Route[Any], components: Components, problem: Schema) -> Schema:
    responses: Schema = {str(status): _response(answer, components) for status, answer in route.answers.items()}
    codes: dict[int, list[str]] = defaultdict(list)
    for code in _codes(route):
        codes[int(kind_beside(code).status)].append(code)
    for status, named in sorted(codes.items()):
        response: Schema = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(named)}.",
            "content": {MEDIA_TYPE: {"schema": problem}},
        }
        if status in (429, 503, 507):
            response["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}
        responses[str(status)] = response
    return responses


def _codes(route: Route[Any]) -> list[str]:
    own = [*route.problems]
    if route.params or route.body is not None:
        own.append("BAD_PARAMETER")
    if route.body is not None:
        own += _OF_BODIES
    return list(dict.fromkeys([*own, "MALFORMED_REQUEST", *_ALWAYS]))


def _response(answer: Answer, components: Components) -> Schema:
    response: Schema = {"description": answer.about}
    if answer.view is not None:
        response["content"] = {answer.media_type: {"schema": components.of(answer.view)}}
    elif answer.media_type != JSON:
        schema: Schema = {"type": "string"}
        if answer.media_type == MSGPACK:
            schema["contentMediaType"] = MSGPACK
        response["content"] = {answer.media_type: {"schema": schema}}
    return response
