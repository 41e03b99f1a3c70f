"""The jobs' part of `Client.direct`: look, wait, list, cancel, amend, forget."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from batchyard import rendering, schemas
from batchyard.catalog import Catalog
from batchyard.errors import Gone, InvalidRequest, NotFound
from batchyard.jobs import State, format_id, parse_id
from batchyard.redriving import read_moment
from batchyard.schemas import MAX_WAIT_SECONDS
from batchyard.sdk.steps import Request
from batchyard.store.base import JobFilter, JobStore, JobView
from batchyard.submission import deadline_after, latest_start_ms

TENANT_ID = 1
"""The default tenant: whoever reaches the database needs no key."""

SHORTEST_LOOK_SECONDS = 0.002
LONGEST_LOOK_SECONDS = 0.1

Answer = tuple[int, object]
"""Status and document."""


class DirectJobs:
    """Each method answers one request, given the variable parts of its path. Thread-safe."""

    def __init__(self, store: JobStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def get(self, request: Request, parts: list[str]) -> Answer:
        number = number_of(parts[0], "job")
        self._await([number], request.query.get("wait"), until="all")
        return 200, self._shown(self.view(number), request)

    def lookup(self, request: Request, parts: list[str]) -> Answer:
        asked = msgspec.json.decode(request.body or b"", type=schemas.LookupRequest)
        numbers = {text: parse_id(text) for text in asked.ids}
        ids = [number for number in numbers.values() if number is not None]
        self._await(ids, str(asked.wait), until=asked.until)
        views = {view.id: view for view in self._store.get_jobs(ids, tenant_id=TENANT_ID, results=asked.results)}
        absent = [text for text, number in numbers.items() if number not in views]
        retired = {format_id(number) for number in self._store.retired_among(ids, tenant_id=TENANT_ID)}
        return 200, schemas.LookupAnswer(
            jobs=[self._shown(views[number], request, looks_ahead=False) for number in ids if number in views],
            missing=[text for text in absent if text not in retired],
            retired=[text for text in absent if text in retired],
        )

    def list_page(self, request: Request, parts: list[str]) -> Answer:
        asked = request.query
        state = next((state for state in State if state.word == asked.get("state")), None)
        if state is None and "state" in asked:
            raise InvalidRequest(f'state is "{asked["state"]}"', allowed=[state.word for state in State])
        page = self._store.list_jobs(
            JobFilter(
                tenant_id=TENANT_ID,
                queue_ids=None if "model" not in asked else self._catalog.queue_ids(asked["model"]),
                state=state,
                label=asked.get("label"),
                error_code=asked.get("error"),
                finished_from_ms=read_moment(asked.get("finished_from"), name="finished_from"),
                finished_before_ms=read_moment(asked.get("finished_before"), name="finished_before"),
                before_id=parse_id(asked["after"]) if "after" in asked else None,
                limit=int(asked["limit"]),
            )
        )
        following = None if page.next_before_id is None else format_id(page.next_before_id)
        jobs = [self._shown(view, request, looks_ahead=False) for view in page.jobs]
        return 200, schemas.JobList(jobs=jobs, next=following)

    def cancel(self, request: Request, parts: list[str]) -> Answer:
        number = number_of(parts[0], "job")
        self.view(number, results=False)
        return 200, self._shown(self._store.cancel(number, tenant_id=TENANT_ID), request)

    def amend(self, request: Request, parts: list[str]) -> Answer:
        number = number_of(parts[0], "job")
        patch = msgspec.json.decode(request.body or b"", type=schemas.JobPatch)
        before = self.view(number, results=False)
        version = self._catalog.load(before.queue_id).version
        deadline_ms = deadline_after(patch.deadline_seconds, self._store.now_ms())
        view = self._store.amend(
            number,
            tenant_id=TENANT_ID,
            priority=patch.priority,
            deadline_ms=deadline_ms,
            start_by_ms=latest_start_ms(deadline_ms, cost=before.cost_estimate, version=version),
        )
        return 200, self._shown(view, request)

    def forget(self, request: Request, parts: list[str]) -> Answer:
        number = number_of(parts[0], "job")
        self.view(number, results=False)
        self._store.forget(number, tenant_id=TENANT_ID)
        return 204, None

    def _await(self, ids: Sequence[int], wait: str | None, *, until: str) -> None:
        """Look at growing intervals until any or all have ended, or the time is over."""
        end = time.monotonic() + min(float(wait or 0.0), MAX_WAIT_SECONDS)
        pause = SHORTEST_LOOK_SECONDS
        while (left := end - time.monotonic()) > 0:
            ended = len(self._store.finished_among(ids))
            if ended and (until == "any" or ended >= len(set(ids))):
                return
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)

    def view(self, number: int, *, results: bool = True) -> JobView:
        views = self._store.get_jobs([number], tenant_id=TENANT_ID, results=results)
        if views:
            return views[0]
        if self._store.retired_among([number], tenant_id=TENANT_ID):
            raise Gone(f"job {format_id(number)} is no longer kept")
        raise NotFound(f"there is no job {format_id(number)}")

    def _shown(self, view: JobView, request: Request, *, looks_ahead: bool = True) -> schemas.Job:
        position = self._store.position(view.id) if looks_ahead and view.state == State.QUEUED else None
        return rendering.job(
            view,
            load=self._catalog.load(view.queue_id),
            now_ms=self._store.now_ms(),
            position=position,
            form=rendering.form_of(request.accept),
        )


def number_of(text: str, what: str) -> int:
    """The id in a path; NotFound where it is none."""
    number = parse_id(text)
    if number is None:
        raise NotFound(f'there is no {what} "{text[:64]}": an id has 16 hexadecimal digits')
    return number
