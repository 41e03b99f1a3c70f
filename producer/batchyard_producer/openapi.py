"""The OpenAPI document of all calls, made from their records and the structs of `batchyard.schemas`. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import msgspec

from batchyard import errors, schemas
from batchyard.webhooks import ALL_EVENTS, Event
from batchyard_producer.calls import Call, Parameter
from batchyard_producer.problems import MEDIA_PROBLEM

_ALWAYS: tuple[type[errors.BatchyardError], ...] = (errors.Unavailable,)
_WITH_CALLER = (errors.Unauthorized, errors.Forbidden, errors.RateLimited)
_IN_PATH = re.compile(r"\{(\w+)\}")

ABOUT = """\
Submit jobs, poll their results. Times are RFC 3339 in UTC, durations seconds, ids 16 hexadecimal digits. Errors are
RFC 9457 problem details with a stable `code`; those marked `retryable` may pass, and say after how long.
"""


def document(calls: Sequence[Call], *, version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    structs = _structs(calls)
    _, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for kind in structs:
        if hasattr(kind, "rules"):
            components[kind.__name__]["allOf"] = [kind.rules]
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for call in calls:
        paths[call.path][call.method.lower()] = _operation(call, calls)
    return {
        "openapi": "3.1.0",
        "info": {"title": "batchyard", "version": version, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(call.tag for call in calls)],
        "paths": dict(paths),
        "webhooks": {event: _webhook(event) for event in ALL_EVENTS},
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; on loopback none is needed unless the server requires keys",
                }
            },
        },
    }


def _structs(calls: Iterable[Call]) -> list[Any]:
    named = [kind for call in calls for kind in (*_each(call.body), *_each(call.answer))]
    named += [kind for call in calls for _, _, answered in call.more_answers for kind in _each(answered)]
    return [*dict.fromkeys(named), schemas.JobEnded, schemas.BulkFinished, schemas.Problem]


def _webhook(event: str) -> dict[str, Any]:
    """What a receiver is sent."""
    kind = schemas.BulkFinished if event == Event.BULK_FINISHED.word else schemas.JobEnded
    operation = {
        "operationId": f"hear_{event.replace('.', '_')}",
        "summary": f"Sent to the webhooks that hear of {event}, signed by Standard Webhooks",
        "requestBody": {"required": True, "content": {schemas.MEDIA_JSON: {"schema": _ref(kind)}}},
        "responses": {
            "2XX": {"description": "Heard; it is not sent again"},
            "410": {"description": "Nothing more is wanted: the endpoint is disabled"},
            "default": {"description": "Sent again later, after a Retry-After where there is one"},
        },
    }
    return {"post": operation}


def _operation(call: Call, calls: Sequence[Call]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(call),
        "summary": call.summary,
        "tags": [call.tag],
        "responses": {str(call.status): _answer(call), **_refusals(call)},
    }
    for status, about, kind in call.more_answers:
        response = operation["responses"].setdefault(str(status), {"description": about, "content": {}})
        response["content"]["application/json"] = {"schema": _ref(kind)}
    links = _links(call, calls)
    if links:
        operation["responses"][str(call.status)]["links"] = links
    if call.about:
        operation["description"] = call.about
    parameters = [_path_parameter(name) for name in _IN_PATH.findall(call.path)]
    parameters += [_parameter(parameter) for parameter in call.parameters]
    if parameters:
        operation["parameters"] = parameters
    if call.body is not None or call.body_media != ("application/json",):
        content = {media: {"schema": _body_schema(call, media)} for media in call.body_media}
        operation["requestBody"] = {"required": call.body_required, "content": content}
    if call.scope is not None:
        operation["security"] = [{"key": []}, {}]
        operation["x-batchyard-scope"] = call.scope
    return operation


def _operation_id(call: Call) -> str:
    words = [word for word in re.split(r"[/{}.]+", call.path.removeprefix("/v1")) if word]
    return "_".join([call.method.lower(), *words])


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": schemas.ID_PATTERN} if name == "id" else {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.about,
        "schema": parameter.schema,
    }


def _body_schema(call: Call, media: str) -> dict[str, Any]:
    if call.body is None or media == "*/*":
        return {}
    if media == schemas.MEDIA_NDJSON:
        return {"type": "string", "description": 'One `{"input": …, "custom_id": …}` a line'}
    return _ref(call.body)


def _answer(call: Call) -> dict[str, Any]:
    response: dict[str, Any] = {"description": call.answer_about or call.summary}
    if call.answer is not None:
        response["content"] = {
            media: {"schema": _ref(call.answer)} if media in {"application/json", "application/msgpack"} else {}
            for media in call.answer_media
        }
    elif call.answer_media != ("application/json",):
        response["content"] = {media: {} for media in call.answer_media}
    if call.status in {201, 202}:
        response["headers"] = {"Location": {"description": "Of what was made", "schema": {"type": "string"}}}
    return response


def _links(call: Call, calls: Sequence[Call]) -> dict[str, Any]:
    """What can be asked next about the things that an answer names."""
    links: dict[str, Any] = {}
    for number, (pointer, path) in enumerate(call.links.items()):
        [name] = _IN_PATH.findall(path)
        for other in calls:
            if other.path == path or other.path.startswith(f"{path}/"):
                key = _operation_id(other) + (f"_{number}" if number else "")
                links[key] = {
                    "operationId": _operation_id(other),
                    "parameters": {name: f"$response.body#{pointer}"},
                }
    return links


def _refusals(call: Call) -> dict[str, Any]:
    """The problems of a call, by status; their codes stand in the description."""
    kinds = [*call.errors, *(_WITH_CALLER if call.scope is not None else ()), *_ALWAYS]
    codes: dict[int, list[str]] = defaultdict(list)
    for kind in dict.fromkeys(kinds):
        codes[kind.status].append(kind.code)
    content = {MEDIA_PROBLEM.decode(): {"schema": _ref(schemas.Problem)}}
    return {str(status): {"description": ", ".join(codes[status]), "content": content} for status in sorted(codes)}


def _each(kind: Any) -> tuple[Any, ...]:
    """The structs of a union, or the one that it is."""
    return () if kind is None else get_args(kind) or (kind,)


def _ref(kind: Any) -> dict[str, Any]:
    if len(_each(kind)) > 1:
        return {"anyOf": [_ref(one) for one in _each(kind)]}
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
