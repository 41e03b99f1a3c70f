"""Holds what the API answers against its own OpenAPI document."""

import re
from typing import Any

import httpx
import jsonschema_rs

from batchyard_producer import openapi
from batchyard_producer.app import CALLS

DOCUMENT = openapi.document(CALLS, version="0")

_ANYWHERE = {"405", "499", "500"}
"""Statuses that no call lists: they say that the caller, or we, made a mistake with the call itself."""

_TEMPLATES = [
    (re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z"), operations)
    for path, operations in sorted(DOCUMENT["paths"].items(), key=lambda entry: entry[0].count("{"))
]


def validator(reference: str) -> jsonschema_rs.Draft202012Validator:
    """Of a schema among the document's components."""
    return jsonschema_rs.Draft202012Validator({"$ref": reference, "components": DOCUMENT["components"]})


async def check(response: httpx.Response) -> None:
    """An answer has a documented status and media type, and its JSON fits the documented schema."""
    operation = _operation(response.request)
    if operation is None or str(response.status_code) in _ANYWHERE:
        return
    responses = operation["responses"]
    assert str(response.status_code) in responses, f"{response.request.method} {response.url}: {response.status_code}"
    await response.aread()
    content = responses[str(response.status_code)].get("content", {})
    media = response.headers.get("content-type", "").partition(";")[0]
    if not content:
        assert not response.content
    elif "*/*" not in content:
        assert media in content
        schema: dict[str, Any] = content[media].get("schema", {})
        for reference in [schema["$ref"]] if "$ref" in schema else []:
            if media.endswith("json"):
                validator(reference).validate(response.json())


def _operation(request: httpx.Request) -> dict[str, Any] | None:
    for template, operations in _TEMPLATES:
        if template.match(request.url.path):
            found: dict[str, Any] | None = operations.get(request.method.lower())
            return found
    return None
