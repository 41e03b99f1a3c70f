"""Dead jobs submitted once more, as steps. A job is redriven once, so every call may be tried again."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from batchyard import results, schemas
from batchyard.errors import InvalidRequest
from batchyard.sdk.calls import JSON_ENCODER, JobRecord, Which, decode
from batchyard.sdk.steps import Patience, Request, Steps, call


def redrive_one(job_id: str, *, to: str | None, patience: Patience) -> Steps[JobRecord]:
    body = JSON_ENCODER.encode(schemas.RedriveOne(to=to))
    response = yield from call(Request(method="POST", path=f"/v1/jobs/{quote(job_id)}/redrive", body=body), patience)
    made = decode(response, schemas.SubmittedJob)
    job = schemas.Job(
        id=made.id,
        model=made.model,
        lane=made.lane,
        state=made.state,
        created_at=made.created_at,
        redrive_of=job_id,
    )
    return JobRecord(job, results.JSON)


def redrive(
    ids: Sequence[str] | None, *, which: Which, to: str | None, dry_run: bool, patience: Patience
) -> Steps[list[schemas.Redriven]]:
    """Step by step, all of them."""
    if (ids is None) == (not any(value is not None for value in which.values())):
        raise InvalidRequest(
            "say which jobs: either their ids, or at least one of state, model, error, label and times"
        )
    done: list[schemas.Redriven] = []
    if ids is not None:
        for start in range(0, len(ids), schemas.MAX_REDRIVE):
            piece = list(ids[start : start + schemas.MAX_REDRIVE])
            answer = yield from _step(schemas.RedriveRequest(ids=piece, to=to, dry_run=dry_run), patience)
            done += answer.jobs
        return done
    where = schemas.DeadJobs(**{name: value for name, value in which.items() if value is not None})  # type: ignore[arg-type]
    after = None
    while True:
        asked = schemas.RedriveRequest(where=where, to=to, dry_run=dry_run, after=after, limit=schemas.MAX_REDRIVE)
        answer = yield from _step(asked, patience)
        done += answer.jobs
        after = answer.next
        if after is None:
            return done


def _step(request: schemas.RedriveRequest, patience: Patience) -> Steps[schemas.RedriveAnswer]:
    sent = Request(method="POST", path="/v1/jobs/redrive", body=JSON_ENCODER.encode(request))
    response = yield from call(sent, patience)
    return decode(response, schemas.RedriveAnswer)
