"""One request at a time: sent, answered or not, and written down."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import httpx

from batchyard.jobs import ID_STRIDE, parse_id
from batchyard.schemas import MAX_LOOKUP_IDS
from tests.faults.history import Call, History, Seen
from tests.faults.members import now_ms

ANSWER_SECONDS = 10.0


class Answer(NamedTuple):
    """What became of a request; `outcome` as in `Call`."""

    outcome: str
    status: int
    body: Any
    began_ms: int
    ended_ms: int

    def call(self, did: str, *, tenant: str, **more: Any) -> Call:
        return Call(
            did=did,  # type: ignore[arg-type]
            tenant=tenant,
            began_ms=self.began_ms,
            ended_ms=self.ended_ms,
            outcome=self.outcome,  # type: ignore[arg-type]
            status=self.status,
            **more,
        )


class Caller:
    """Calls any of the APIs as one tenant. Not thread-safe."""

    def __init__(self, urls: Sequence[str], *, tenant: str, key: str, rng: random.Random) -> None:
        self.tenant = tenant
        self._rng = rng
        headers = {"Authorization": f"Bearer {key}"}
        self._clients = [httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS) for url in urls]

    def call(self, method: str, path: str, body: Any = None, *, key: str = "") -> Answer:
        """One request to one of them; fail: it was surely not carried out, unknown: nobody can tell."""
        began = now_ms()
        headers = {"Idempotency-Key": key} if key else {}
        try:
            answer = self._rng.choice(self._clients).request(method, path, json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return Answer("fail", 0, None, began, now_ms())
        except httpx.TransportError:
            return Answer("unknown", 0, None, began, now_ms())
        outcome = "ok" if answer.is_success else "fail" if answer.is_client_error else "unknown"
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return Answer(outcome, answer.status_code, answer.json() if is_json else answer.text, began, now_ms())

    def close(self) -> None:
        for client in self._clients:
            client.close()


def note_poll(answer: Answer, ids: Sequence[int], *, tenant: str, history: History) -> list[int]:
    """Write a poll down; returns the jobs that failed."""
    seen = seen_in(answer.body["jobs"]) if answer.outcome == "ok" else {}
    history.add([answer.call("poll", tenant=tenant, ids=tuple(ids), seen=seen)])
    return [job for job, what in seen.items() if what.state in {"failed", "cancelled", "expired"}]


def lookups(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """As many as one call may ask for."""
    return (ids[start : start + MAX_LOOKUP_IDS] for start in range(0, len(ids), MAX_LOOKUP_IDS))


def seen_in(jobs: Sequence[Any]) -> dict[int, Seen]:
    """Jobs as an answer shows them, by id."""
    return {number_of(job["id"]): Seen(job["state"], job.get("result")) for job in jobs}


def ids_in(body: Any) -> tuple[int, ...]:
    """The jobs that a submission, or a chunk, was answered with."""
    if "ids" in body:
        return tuple(map(number_of, body["ids"]))
    if "first_id" in body:
        first = number_of(body["first_id"])
        return tuple(range(first, first + body["accepted"] * ID_STRIDE, ID_STRIDE))
    return (number_of(body["id"]),)


def number_of(text: str) -> int:
    """The id behind its text."""
    number = parse_id(text)
    assert number is not None, text
    return number
