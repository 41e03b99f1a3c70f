"""Jobs: list, amend, cancel, forget. Submitting and polling are hot, see `batchyard_producer.hot`."""

from __future__ import annotations

from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import Conflict, Gone, InvalidRequest, NotFound, UnknownModel
from batchyard.jobs import State, format_id, parse_id
from batchyard.redriving import read_moment
from batchyard.store.base import JobFilter, JobView
from batchyard.submission import deadline_after, latest_start_ms
from batchyard_producer.bodies import read_struct, whole_number
from batchyard_producer.calls import Asked, Call, Parameter, answer

MAX_PAGE = 1000


async def list_jobs(asked: Asked) -> Response:
    given = asked.query("model", "state", "label", "error", "finished_from", "finished_before", "after", "limit")
    wanted = JobFilter(
        tenant_id=asked.tenant_id,
        queue_ids=None if "model" not in given else asked.services.catalog.queue_ids(given["model"]),
        state=_state(given.get("state")),
        label=given.get("label"),
        error_code=given.get("error"),
        finished_from_ms=read_moment(given.get("finished_from"), name="finished_from"),
        finished_before_ms=read_moment(given.get("finished_before"), name="finished_before"),
        before_id=cursor(given.get("after")),
        limit=whole_number(given.get("limit"), name="limit", default=100, least=1, most=MAX_PAGE),
    )
    page = await asked.services.call(asked.services.store.list_jobs, wanted)
    now_ms = asked.services.store.now_ms()
    load = asked.services.catalog.load
    return answer(
        schemas.JobList(
            jobs=[rendering.job(view, load=load(view.queue_id), now_ms=now_ms) for view in page.jobs],
            next=None if page.next_before_id is None else format_id(page.next_before_id),
        )
    )


async def amend_job(asked: Asked) -> Response:
    number = asked.path_id("job")
    patch = await read_struct(asked, schemas.JobPatch)
    if patch.priority is None and patch.deadline_seconds is None:
        raise InvalidRequest("give `priority`, `deadline_seconds` or both", pointer="", allowed=_AMENDABLE)
    before = await _find(asked, number)
    load = asked.services.catalog.load(before.queue_id)
    deadline_ms = deadline_after(patch.deadline_seconds, asked.services.store.now_ms())
    view = await asked.services.call(
        asked.services.store.amend,
        number,
        tenant_id=asked.tenant_id,
        priority=patch.priority,
        deadline_ms=deadline_ms,
        start_by_ms=latest_start_ms(deadline_ms, cost=before.cost_estimate, version=load.version),
    )
    return await _shown(asked, view)


async def cancel_job(asked: Asked) -> Response:
    number = asked.path_id("job")
    try:
        view = await asked.services.call(asked.services.store.cancel, number, tenant_id=asked.tenant_id)
    except NotFound as missing:
        raise await gone_or_missing(asked, number) from missing
    return await _shown(asked, view)


async def forget_job(asked: Asked) -> Response:
    number = asked.path_id("job")
    try:
        await asked.services.call(asked.services.store.forget, number, tenant_id=asked.tenant_id)
    except NotFound as missing:
        raise await gone_or_missing(asked, number) from missing
    return Response(status_code=204)


async def gone_or_missing(asked: Asked, number: int) -> NotFound | Gone:
    """The error for a job that is not there: it was, or never was this tenant's."""
    retired = await asked.services.call(asked.services.store.retired_among, [number], tenant_id=asked.tenant_id)
    if retired:
        return Gone(f"job {format_id(number)} is no longer kept")
    return NotFound(f"there is no job {format_id(number)}")


def cursor(text: str | None) -> int | None:
    """The `after` of a listing: the `next` of the page before."""
    if text is None:
        return None
    number = parse_id(text)
    if number is None:
        raise InvalidRequest(f'after is "{text[:32]}"; it must be the `next` of an earlier page')
    return number


async def _find(asked: Asked, number: int) -> JobView:
    views = await asked.services.call(asked.services.store.get_jobs, [number], tenant_id=asked.tenant_id, results=False)
    if not views:
        raise await gone_or_missing(asked, number)
    return views[0]


async def _shown(asked: Asked, view: JobView) -> Response:
    store = asked.services.store
    position = await asked.services.call(store.position, view.id) if view.state == State.QUEUED else None
    form = rendering.form_of(asked.accept)
    load = asked.services.catalog.load(view.queue_id)
    return answer(rendering.job(view, load=load, now_ms=store.now_ms(), position=position, form=form), form=form)


def _state(word: str | None) -> State | None:
    if word is None:
        return None
    for state in State:
        if state.word == word:
            return state
    raise InvalidRequest(f'state is "{word[:32]}"', allowed=[state.word for state in State])


_MOMENT = {"type": "string", "format": "date-time"}
_AMENDABLE = ["priority", "deadline_seconds"]
_STATES = [state.word for state in State]

AFTER = Parameter(
    name="after", about="The `next` of the page before", schema={"type": "string", "pattern": schemas.ID_PATTERN}
)
LIMIT = Parameter(
    name="limit",
    about="How many at the most",
    schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100},
)

CALLS = (
    Call(
        method="GET",
        path="/v1/jobs",
        summary="List jobs, newest first",
        about="A page's work is bounded, so it may hold fewer jobs than asked for and still have a next one.",
        tag="jobs",
        handler=list_jobs,
        links={"/jobs/0/id": "/v1/jobs/{id}"},
        parameters=(
            Parameter(name="model", about="`model` for all its versions, or `model@version`"),
            Parameter(name="state", about="Only jobs in this state", schema={"type": "string", "enum": _STATES}),
            Parameter(name="label", about="Only jobs with this label"),
            Parameter(name="error", about='Only jobs whose error has this code, such as "crash_loop"'),
            Parameter(name="finished_from", about="Only jobs that ended then or later", schema=_MOMENT),
            Parameter(name="finished_before", about="Only jobs that ended earlier", schema=_MOMENT),
            AFTER,
            LIMIT,
        ),
        answer=schemas.JobList,
        errors=(InvalidRequest, UnknownModel),
    ),
    Call(
        method="PATCH",
        path="/v1/jobs/{id}",
        summary="Change the priority or the deadline of a queued job",
        tag="jobs",
        handler=amend_job,
        body=schemas.JobPatch,
        answer=schemas.Job,
        answer_media=("application/json", rendering.MEDIA_MSGPACK),
        errors=(InvalidRequest, NotFound, Gone, Conflict),
    ),
    Call(
        method="POST",
        path="/v1/jobs/{id}/cancel",
        summary="Cancel a job",
        about="A queued or waiting job is cancelled at once, a running one as soon as its consumer hears of it; one "
        "that has ended is answered as it is.",
        tag="jobs",
        handler=cancel_job,
        answer=schemas.Job,
        answer_media=("application/json", rendering.MEDIA_MSGPACK),
        errors=(NotFound, Gone),
    ),
    Call(
        method="DELETE",
        path="/v1/jobs/{id}",
        summary="Forget a finished job, its input and its result",
        about="Payloads that no other job refers to go with it. Its id answers 410 from then on.",
        tag="jobs",
        handler=forget_job,
        status=204,
        errors=(NotFound, Gone, Conflict),
    ),
)
