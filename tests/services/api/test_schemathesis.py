"""Our own OpenAPI document against the server that gives it: every answer under every check that schemathesis has.

Sequences follow the document's links, so jobs and bulks that were made are polled, amended, cancelled, redriven and
forgotten; each call alone is tried with what its schema allows and with what it does not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core import NOT_SET
from schemathesis.core.failures import Failure, FailureGroup

from batchyard.jobs import parse_id
from batchyard_producer.app import CALLS
from tests.services.api.yard import SERVER, Yard

# The server runs in this process and draws numbers of its own meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

NAMES = {"model": ["echo", "echo@1", "strict"], "tenant": ["default"]}
"""What there is, in place of any name: else no sequence would begin."""
SEQUENCES = 4
"""Each of six tries of up to ten steps, about two seconds."""
STEPS = 120
"""At least so many calls must have been made, whatever sequences were given up."""
BEYOND_SCHEMAS = {"invalid_input", "idempotency_conflict", "too_large", "gone"}
"""Refusals of what the document allows: by a model's own schema, by what was done before, by a bulk's chunk size."""
BEYOND_MEMBERS = {"/custom_ids", "/webhook"}
"""No schema can say that two lists are equally long, nor which addresses are public."""
SETTINGS = hypothesis.settings(
    deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


class Inspector:
    """Holds answers against the document and gathers what is wrong: to shrink a case by repeating it would mislead,
    since the system remembers."""

    def __init__(self, yard: Yard) -> None:
        load_all_checks()
        self.yard = yard
        self.schema = schema_of(yard)
        self.seen: Counter[tuple[str, int]] = Counter()
        """By call and status."""
        self.faults: dict[tuple[str, str], str] = {}

    def look(self, case: Case[Any], response: Response) -> None:
        label = case.operation.label
        self.seen[label, response.status_code] += 1
        for check in CHECKS.get_all():
            if is_excepted(check.__name__, case, response):
                continue
            try:
                case.validate_response(response, checks=[check])  # type: ignore[list-item]
            except (Failure, FailureGroup) as fault:  # told at the end, with all others
                shown = (
                    f"{case.as_curl_command()[:600]}\n  {response.status_code} {response.text[:300]}\n  {fault!s:.400}"
                )
                self.faults.setdefault((label, check.__name__), shown)

    def work(self, response: Response) -> None:
        """Be the consumer of half the jobs that an answer names, so that sequences meet them in every state."""
        if response.status_code == 202:
            document = response.json()
            ids = document.get("ids") or [document.get("id") or document["first_id"]]
            for job in ids[::2]:
                view = self.yard.store.get_jobs([parse_id(job) or 0], tenant_id=1, results=False)
                if view and view[0].state.word == "queued" and not document.get("replayed"):
                    # Its bulk may be paused, or its deadline a moment away.
                    self.yard.finish([job], all_of_them=False)

    def tell(self) -> None:
        told = [f"{label}, {check}:\n  {shown}" for (label, check), shown in sorted(self.faults.items())]
        assert not told, "\n\n".join(told)


def furnish(yard: Yard) -> dict[str, list[str]]:
    """Some of everything, by where its ids stand: jobs in several states, among them dead ones, bulks, a payload."""
    made = yard.submit(*range(8), "fail", "fail", "fail", "fail")
    yard.finish(made[4:])
    bulks = [yard.bulk() for _ in range(3)]
    fed = [yard.feed(bulk, ["x", "y"], key="0").json()["first_id"] for bulk in bulks]
    payload = yard.client.post("/v1/payloads", content=b"x").json()["id"]
    return {"/v1/jobs": [*made, *fed], "/v1/bulks": bulks, "/v1/payloads": [payload]}


def schema_of(yard: Yard) -> Any:
    """The document, told what there is and what this server's own limits are."""
    there = furnish(yard)
    document: dict[str, Any] = yard.client.get("/openapi.json").json()
    for path, entry in document["paths"].items():
        for operation in entry.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "id":
                    ids = next((ids for start, ids in there.items() if path.startswith(start)), None)
                    parameter["schema"] = {"enum": ids} if ids else parameter["schema"]
                if parameter["in"] == "path" and parameter["name"] in NAMES:
                    parameter["schema"] = {"enum": NAMES[parameter["name"]]}
                if parameter["name"] == "wait":
                    parameter["schema"] = {"enum": [0, 0.01]}
    schemas = document["components"]["schemas"]
    for kind in ("BulkRequest", "KeyRequest"):
        for name in NAMES.keys() & schemas[kind]["properties"]:
            schemas[kind]["properties"][name] = {"enum": NAMES[name]}
    schemas["BulkRequest"]["properties"]["chunk_size"] = {"enum": [None, 1, SERVER.max_inputs]}
    schemas["LookupRequest"]["properties"]["wait"] = {"enum": [0, 0.01]}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=yard.url)
    schema.config.generation.update(allow_x00=False)
    return schema


def is_excepted(check: str, case: Case[Any], response: Response) -> bool:
    if check == "positive_data_acceptance" and response.status_code in {410, 413, 422}:
        document = response.json()
        return document["code"] in BEYOND_SCHEMAS or document.get("pointer") in BEYOND_MEMBERS or is_webhooks(case)
    # A payload is any bytes: there are none that its schema does not allow. And no body is right where none is needed.
    return check == "negative_data_rejection" and (
        case.operation.label == "POST /v1/payloads" or (case.body is NOT_SET and not case.query)
    )


def is_webhooks(case: Case[Any]) -> bool:
    """Where they may lead, and which of them to replay, no schema says."""
    return "/v1/webhook" in case.operation.label


def whole(value: Any) -> Any:
    """JSON Schema takes 5.0 for an integer, and one of any size; the API takes 5, and what fits into 64 bits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**63 else value % 2**63
    if isinstance(value, dict):
        return {name: whole(member) for name, member in value.items()}
    return [whole(member) for member in value] if isinstance(value, list) else value


def test_calls_in_sequence_keep_to_the_document(yard: Yard) -> None:
    inspector = Inspector(yard)
    linked = inspector.schema.include(tag=["jobs", "bulks"])

    class Calls(linked.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Case[Any]) -> None:
            case.body = whole(case.body)

        def validate_response(self, response: Response, case: Case[Any], *_: Any, **__: Any) -> None:
            inspector.look(case, response)
            inspector.work(response)

    settings = hypothesis.settings(SETTINGS, max_examples=6, stateful_step_count=10)
    for seed in range(SEQUENCES):
        try:
            run_state_machine_as_test(hypothesis.seed(seed)(Calls), settings=settings)
        except Flaky:
            continue  # the system was in another state than at the try before, and a sequence took another way
    inspector.tell()
    assert inspector.seen.total() >= STEPS
    reached = {label for label, status in inspector.seen if status < 300}
    linked_calls = {f"{call.method} {call.path}" for call in CALLS if call.tag in {"jobs", "bulks"}}
    # A few need a body that is rarely right by chance.
    assert len(linked_calls - reached) <= len(linked_calls) // 3, linked_calls - reached
    assert reached >= {"GET /v1/jobs/{id}", "POST /v1/jobs/{id}/cancel", "DELETE /v1/jobs/{id}"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_each_call_alone_keeps_to_the_document(yard: Yard, mode: GenerationMode) -> None:
    """`negative` is what the document does not allow, and must be refused."""
    inspector = Inspector(yard)
    for found in inspector.schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(SETTINGS, max_examples=2)
        @hypothesis.seed(0)
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Case[Any]) -> None:
            case.body = whole(case.body)
            inspector.look(case, case.call())

        try:
            call()
        except hypothesis.errors.Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label  # nothing is not allowed
    inspector.tell()
