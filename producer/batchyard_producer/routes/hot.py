"""What the hot calls look like to readers of the documentation; `batchyard_producer.hot` serves them."""

from __future__ import annotations

from typing import Any

from batchyard import schemas
from batchyard.errors import (
    Conflict,
    Gone,
    IdempotencyConflict,
    InvalidInput,
    InvalidRequest,
    NotFound,
    OverQuota,
    QueueFull,
    TooLarge,
    UnknownModel,
)
from batchyard.rendering import MEDIA_MSGPACK
from batchyard.results import FRAMES_TYPE
from batchyard_producer.calls import IDEMPOTENCY_KEY, Call, Parameter

_CURSOR: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{0,18}$"}
_WAIT: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": schemas.MAX_WAIT_SECONDS, "default": 0}
_TENSORS = Parameter(
    name="tensors",
    about="How JSON shows tensors: nested lists of numbers, or their raw bytes in base64",
    schema={"type": "string", "enum": ["numbers", "base64"], "default": "numbers"},
)
_JOB_MEDIA = (schemas.MEDIA_JSON, MEDIA_MSGPACK)

CALLS = (
    Call(
        method="POST",
        path="/v1/models/{model}/jobs",
        summary="Submit one job, or up to 10,000 at once",
        about="Answered once the jobs are committed; all or nothing. `model` is a name, drawn by weight,"
        " or `model@version`. With `inputs` the answer is a `SubmittedJobs`. With `Prefer: wait=N` it is a `Job` (or a "
        "`JobList`), with 200 instead of 202 where all have ended within N seconds.",
        tag="jobs",
        handler=None,
        links={"/id": "/v1/jobs/{id}", "/ids/0": "/v1/jobs/{id}"},
        parameters=(
            IDEMPOTENCY_KEY,
            Parameter(
                name="Prefer",
                about="`wait=N`: answer with the job's result if it ends within N seconds",
                place="header",
            ),
        ),
        body=schemas.JobsRequest,
        status=202,
        answer=schemas.SubmittedJob | schemas.SubmittedJobs | schemas.Job | schemas.JobList,
        more_answers=((200, "all have ended within the wait", schemas.Job | schemas.JobList),),
        errors=(InvalidRequest, InvalidInput, IdempotencyConflict, UnknownModel, TooLarge, QueueFull, OverQuota),
    ),
    Call(
        method="GET",
        path="/v1/jobs/{id}",
        summary="A job, with its result once it has one",
        about="As MessagePack, tensors stay binary: extension type 1 holding `[dtype, shape, bytes]`.",
        tag="jobs",
        handler=None,
        parameters=(
            Parameter(name="wait", about="Seconds to wait for the job to end", schema=_WAIT),
            _TENSORS,
        ),
        answer=schemas.Job,
        answer_media=_JOB_MEDIA,
        errors=(InvalidRequest, NotFound, Gone, QueueFull),
    ),
    Call(
        method="POST",
        path="/v1/jobs/lookup",
        summary="Many jobs at once, waiting for any or all",
        tag="jobs",
        handler=None,
        parameters=(_TENSORS,),
        body=schemas.LookupRequest,
        answer=schemas.LookupAnswer,
        answer_media=_JOB_MEDIA,
        errors=(InvalidRequest, TooLarge, QueueFull),
    ),
    Call(
        method="POST",
        path="/v1/bulks/{id}/jobs",
        summary="Feed a bulk one chunk",
        about="All or nothing. A known key answers as before even after the seal; a new chunk then is a conflict.",
        tag="bulks",
        handler=None,
        links={"/first_id": "/v1/jobs/{id}", "/bulk_id": "/v1/bulks/{id}"},
        parameters=(IDEMPOTENCY_KEY,),
        body=schemas.BulkChunk,
        body_media=(schemas.MEDIA_JSON, schemas.MEDIA_NDJSON),
        status=202,
        answer=schemas.ChunkAccepted,
        errors=(
            InvalidRequest,
            InvalidInput,
            IdempotencyConflict,
            NotFound,
            Gone,
            Conflict,
            TooLarge,
            QueueFull,
            OverQuota,
        ),
    ),
    Call(
        method="GET",
        path="/v1/bulks/{id}/results",
        summary="A bulk's results as they come, in the order of completion",
        about="A stream that can be resumed after any cursor it gave. As NDJSON each line is a `ResultLine`; "
        "`application/x-batchyard-results` is a stream of frames: four bytes with a length, big-endian, then the "
        "MessagePack of `[cursor, finished, [[seq, id, index, state, custom_id, format, body], …]]`.",
        tag="bulks",
        handler=None,
        parameters=(
            Parameter(name="after", about="The last cursor seen", schema=_CURSOR),
            Parameter(name="wait", about="Seconds without a new result after which the stream ends", schema=_WAIT),
            _TENSORS,
        ),
        answer=schemas.ResultLine,
        answer_media=(schemas.MEDIA_NDJSON, FRAMES_TYPE),
        errors=(InvalidRequest, NotFound, Gone, QueueFull),
    ),
)
