"""The OpenAPI document is whole and valid, and so is the page made from it."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest

from batchyard_producer import documentation
from batchyard_producer.app import CALLS
from tests.unit.producer.conftest import Served
from tests.unit.producer.contract import DOCUMENT, validator

OPERATIONS = [
    (method, path, operation) for path, entry in DOCUMENT["paths"].items() for method, operation in entry.items()
]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "$ref":
                yield member
            else:
                yield from references(member)
    elif isinstance(value, list):
        for member in value:
            yield from references(member)


def test_every_call_is_described_once() -> None:
    assert len(OPERATIONS) == len(CALLS)
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))


def test_the_designs_calls_are_there() -> None:
    described = {f"{method.upper()} {path}" for method, path, _ in OPERATIONS}
    assert described >= {
        "POST /v1/models/{model}/jobs",
        "GET /v1/jobs/{id}",
        "POST /v1/jobs/lookup",
        "GET /v1/jobs",
        "PATCH /v1/jobs/{id}",
        "POST /v1/jobs/{id}/cancel",
        "DELETE /v1/jobs/{id}",
        "POST /v1/bulks",
        "POST /v1/bulks/{id}/jobs",
        "POST /v1/bulks/{id}/seal",
        "GET /v1/bulks/{id}",
        "GET /v1/bulks/{id}/results",
        "POST /v1/bulks/{id}/cancel",
        "POST /v1/bulks/{id}/pause",
        "POST /v1/bulks/{id}/resume",
        "POST /v1/payloads",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/pools",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_every_schema_is_one(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    validator(f"#/components/schemas/{name}")


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: str(value)[:40])
def test_every_operation_is_well_formed(method: str, path: str, operation: dict[str, Any]) -> None:
    declared = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
    assert declared == re.findall(r"\{(\w+)\}", path)
    assert operation["summary"]
    assert all(response["description"] for response in operation["responses"].values())
    assert any(status.startswith("2") for status in operation["responses"])
    if method == "get":
        assert "requestBody" not in operation


async def test_the_document_and_the_page_are_served(shared_api: Served) -> None:
    assert (await shared_api.get("/openapi.json")).json()["paths"].keys() == DOCUMENT["paths"].keys()
    page = await shared_api.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST" in page.text


def test_the_page_names_every_call_and_fetches_nothing() -> None:
    page = documentation.page(json.loads(json.dumps(DOCUMENT)))
    reader = Reader()
    reader.feed(page)
    text = "".join(reader.text)
    assert all(path in text for _, path, _ in OPERATIONS)
    assert not reader.fetched


class Reader(HTMLParser):
    """Gathers the text of a page, and what a browser would fetch for it."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "img", "link", "iframe"} or any(name == "src" for name, _ in attrs):
            self.fetched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
