"""Models: versions and weights, schemas, backlog, pools, warm or cold; pausing and resuming their queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import InvalidRequest, UnknownModel
from batchyard.jobs import Lane
from batchyard.store.base import ModelVersion
from batchyard_producer.calls import Asked, Call, Parameter, answer


async def list_models(asked: Asked) -> Response:
    oldest_ms = await asked.services.call(asked.services.store.oldest_queued_ms)
    return answer(schemas.ModelList(models=_grouped(asked, asked.services.catalog.snapshot.versions, oldest_ms)))


async def get_model(asked: Asked) -> Response:
    versions = find_versions(asked, asked.path_text("model"))
    oldest_ms = await asked.services.call(asked.services.store.oldest_queued_ms)
    return answer(_grouped(asked, versions, oldest_ms)[0])


async def pause_model(asked: Asked) -> Response:
    return await _set_paused(asked, paused=True)


async def resume_model(asked: Asked) -> Response:
    return await _set_paused(asked, paused=False)


async def _set_paused(asked: Asked, *, paused: bool) -> Response:
    services = asked.services
    lanes = _lanes(asked.query("lane").get("lane"))
    for version in find_versions(asked, asked.path_text("model")):
        for lane in lanes:
            await services.call(services.store.set_queue_paused, version.queue_ids[lane], paused=paused)
    await services.call(services.catalog.refresh)
    return await get_model(asked)


def find_versions(asked: Asked, name: str) -> list[ModelVersion]:
    """All versions of a model, or the one named `model@version`, in the configuration or not; UnknownModel."""
    return asked.services.catalog.versions(name)


def _lanes(word: str | None) -> list[Lane]:
    if word is None:
        return list(Lane)
    for lane in Lane:
        if lane.word == word:
            return [lane]
    raise InvalidRequest(f'lane is "{word[:32]}"', allowed=[lane.word for lane in Lane])


def _grouped(asked: Asked, versions: Iterable[ModelVersion], oldest_ms: Mapping[int, int]) -> list[schemas.Model]:
    snapshot = asked.services.catalog.snapshot
    now_ms = asked.services.store.now_ms()
    models: dict[str, list[schemas.ModelVersion]] = {}
    for version in versions:
        queues = [
            rendering.queue(snapshot.queues[number], oldest_ms=oldest_ms.get(number), now_ms=now_ms)
            for number in version.queue_ids.values()
            if number in snapshot.queues
        ]
        shown = rendering.model_version(
            version, queues=queues, consumers=snapshot.consumers, pools=asked.services.settings.pools
        )
        models.setdefault(version.model, []).append(shown)
    return [schemas.Model(name=name, versions=of_model) for name, of_model in sorted(models.items())]


def _pausing(verb: str, summary: str, about: str, handler: object) -> Call:
    return Call(
        method="POST",
        path=f"/v1/models/{{model}}/{verb}",
        summary=summary,
        about=about,
        tag="models",
        handler=handler,  # type: ignore[arg-type]
        scope="admin",
        parameters=(
            Parameter(
                name="lane", about="Of this lane alone", schema={"type": "string", "enum": [x.word for x in Lane]}
            ),
        ),
        answer=schemas.Model,
        errors=(InvalidRequest, UnknownModel),
    )


CALLS = (
    Call(
        method="GET",
        path="/v1/models",
        summary="All models with their versions",
        tag="models",
        handler=list_models,
        answer=schemas.ModelList,
    ),
    Call(
        method="GET",
        path="/v1/models/{model}",
        summary="One model, or one version of it as `model@version`",
        tag="models",
        handler=get_model,
        answer=schemas.Model,
        errors=(UnknownModel,),
    ),
    _pausing("pause", "Pause a model's queues", "Jobs are still accepted; none is claimed until resumed.", pause_model),
    _pausing("resume", "Resume a model's queues", "Its jobs may be claimed again.", resume_model),
)
