"""Dead jobs submitted once more, singly or by filter."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.responses import Response

from batchyard import schemas
from batchyard.errors import Conflict, Gone, InvalidInput, InvalidRequest, NotFound, QueueFull, TooLarge, UnknownModel
from batchyard.jobs import Accepted, Submission
from batchyard.redriving import Steps, advance
from batchyard_producer.bodies import read_struct
from batchyard_producer.calls import Asked, Call, answer

T = TypeVar("T")


async def redrive_job(asked: Asked) -> Response:
    number = asked.path_id("job")
    request = await read_struct(asked, schemas.RedriveOne, absent=schemas.RedriveOne())
    steps = asked.services.redriver.one(number, to=request.to, caller=asked.identity.caller)
    made = await _performed(asked, steps)
    return answer(made, status=202, location=f"/v1/jobs/{made.id}")


async def redrive_jobs(asked: Asked) -> Response:
    request = await read_struct(asked, schemas.RedriveRequest)
    return answer(await _performed(asked, asked.services.redriver.some(request, caller=asked.identity.caller)))


async def _performed(asked: Asked, steps: Steps[T]) -> T:
    """Perform the steps, with what they submit in the group commit."""
    services = asked.services

    async def commit(submission: Submission) -> Accepted:
        return await services.commit.submit(submission)

    submissions, done = await services.call(advance, steps, None)
    while submissions:
        outcomes = await asyncio.gather(*map(commit, submissions), return_exceptions=True)
        submissions, done = await services.call(advance, steps, outcomes)
    assert done is not None
    return done


CALLS = (
    Call(
        method="POST",
        path="/v1/jobs/{id}/redrive",
        summary="Submit a job that ended without a result once more",
        about="As a new job with the same input, parameters, labels and payloads, and as much time as the old one had, "
        "which names it in `redrive_of`. A job is redriven once: asked again, the answer is that same new job, with "
        "`replayed`. Then that one may be redriven.",
        tag="jobs",
        handler=redrive_job,
        links={"/id": "/v1/jobs/{id}"},
        body=schemas.RedriveOne,
        body_required=False,
        status=202,
        answer=schemas.SubmittedJob,
        errors=(InvalidRequest, InvalidInput, NotFound, Gone, Conflict, UnknownModel, TooLarge, QueueFull),
    ),
    Call(
        method="POST",
        path="/v1/jobs/redrive",
        summary="Redrive many jobs, by their ids or by a filter",
        about="One bounded step: with `where`, go on with `after` until there is no `next`. Any step may be repeated, "
        "for a job is redriven once; one that had been before is answered as it was, with `already`. A queue without "
        "room for all takes as many as it can; the call is then answered with 429, and may be repeated.",
        tag="jobs",
        handler=redrive_jobs,
        body=schemas.RedriveRequest,
        answer=schemas.RedriveAnswer,
        errors=(InvalidRequest, UnknownModel, TooLarge, QueueFull),
    ),
)
