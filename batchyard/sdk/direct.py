"""`Client.direct`: the API's calls answered in this process, over the same submission core, store and tickets.

It takes the same requests as the HTTP transport and answers with the same documents, so everything above it is one.
What only a running API knows (status, pools, metrics) it does not answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

import msgspec

from batchyard import rendering, results, schemas
from batchyard.broker import Broker
from batchyard.broker.embedded import resolve_broker_url
from batchyard.catalog import Catalog
from batchyard.errors import BrokerDown, Conflict, NotFound, UnknownModel
from batchyard.jobs import Accepted, IdSource, Lane, State, Submission, format_id
from batchyard.payloads import ObjectStore, location_of, open_objects
from batchyard.redriving import Redriver, perform
from batchyard.result_pages import ResultPages
from batchyard.schemas import rfc3339
from batchyard.sdk.direct_jobs import (
    LONGEST_LOOK_SECONDS,
    SHORTEST_LOOK_SECONDS,
    TENANT_ID,
    Answer,
    DirectJobs,
    number_of,
)
from batchyard.sdk.steps import MEDIA_MSGPACK, Request, Response
from batchyard.settings import Settings
from batchyard.store.base import BulkView, JobStore, PayloadInfo
from batchyard.store.open import open_store
from batchyard.submission import Caller, Prepared, Submitter, read_envelope
from batchyard.ticketing import Allowance, ControlLink, TicketPublisher, queue_names

_decode_redrive_one = msgspec.json.Decoder(schemas.RedriveOne).decode
_decode_redrive = msgspec.json.Decoder(schemas.RedriveRequest).decode

Handler = Callable[[Request, list[str]], Answer]
"""What answers a request, given the variable parts of its path."""


class Direct:
    """A transport without HTTP. Thread-safe."""

    def __init__(self, settings: Settings, *, store: JobStore, broker: Broker, objects: ObjectStore) -> None:
        self._settings = settings
        self._store = store
        self._broker = broker
        self._objects = objects
        self._payload_ids = IdSource(store.take_node())
        self._payload_lock = threading.Lock()
        self._catalog = Catalog(
            store, max_queued=settings.queues.max_queued, pools=settings.pools, limits=settings.limits
        )
        self._jobs = DirectJobs(store, self._catalog)
        self._submitter = Submitter(
            self._catalog, server=settings.server, queues=settings.queues, webhooks=settings.webhooks
        )
        self._redriver = Redriver(store, catalog=self._catalog, submitter=self._submitter)
        self._caller = Caller(tenant_id=TENANT_ID)
        self._allowance = Allowance()
        self._link = ControlLink(broker, self._allowance)
        self._publisher = TicketPublisher(broker, names=self._queue_name, link=self._link)
        self._stop = threading.Event()
        self._refresher = threading.Thread(
            target=self._catalog.run, args=(self._stop,), name="batchyard-catalog", daemon=True
        )

    @classmethod
    def open(
        cls,
        *,
        database: str | None,
        broker: str | None,
        config: str | os.PathLike[str] | None,
        state: str | os.PathLike[str] | None,
    ) -> Direct:
        """Open what the configuration names, with the URLs given here on top.

        Unavailable without a database, MissingExtra without what speaks to it.
        """
        from batchyard.configuration import load_settings

        settings = load_settings(config, state, {"database.url": database, "broker.url": broker})
        store = open_store(settings.database.url, state_dir=settings.state_dir)
        direct = cls(settings, store=store, broker=Broker(resolve_broker_url(settings)), objects=open_objects(settings))
        direct.start()
        return direct

    def start(self) -> None:
        self._catalog.refresh()
        self._link.start()
        self._publisher.start()
        self._refresher.start()

    def close(self) -> None:
        """Publish what was committed, and let go of everything."""
        self._stop.set()
        self._publisher.close()
        self._link.close()
        self._refresher.join(timeout=5)
        with suppress(BrokerDown):
            self._broker.close()
        self._store.close()

    # --- the transport ---

    def send(self, request: Request) -> Response:
        handler, parts = self._route(request)
        try:
            status, document = handler(request, parts)
        except UnknownModel:
            # It may have been registered since the last refresh. Names are resolved before anything is changed.
            self._catalog.refresh()
            status, document = handler(request, parts)
        form = rendering.form_of(request.accept)
        body = b"" if document is None else rendering.encode(document, form)
        return Response(
            status=status, body=body, content_type=MEDIA_MSGPACK if form == "msgpack" else schemas.MEDIA_JSON
        )

    @contextmanager
    def stream(self, request: Request) -> Iterator[Iterator[bytes]]:
        bulk = self._bulk(request.path.split("/")[3])
        yield self._frames(bulk.id, after=int(request.query["after"]), wait_seconds=float(request.query["wait"]))

    def _route(self, request: Request) -> tuple[Handler, list[str]]:
        parts = [unquote(part) for part in request.path.split("/")[2:]]
        match request.method, *parts:
            case "POST", "models", model, "jobs":
                return self._submit, [model]
            case "GET", "models":
                return self._models, []
            case "GET", "models", model:
                return self._model, [model]
            case "POST", "models", model, ("pause" | "resume") as verb:
                return self._set_paused, [model, verb]
            case "POST", "jobs", "lookup":
                return self._jobs.lookup, []
            case "POST", "jobs", "redrive":
                return self._redrive_some, []
            case "POST", "jobs", job, "redrive":
                return self._redrive_one, [job]
            case "GET", "jobs":
                return self._jobs.list_page, []
            case "GET", "jobs", job:
                return self._jobs.get, [job]
            case "POST", "jobs", job, "cancel":
                return self._jobs.cancel, [job]
            case "PATCH", "jobs", job:
                return self._jobs.amend, [job]
            case "DELETE", "jobs", job:
                return self._jobs.forget, [job]
            case "POST", "payloads":
                return self._upload, []
            case "POST", "bulks":
                return self._create_bulk, []
            case "GET", "bulks", bulk:
                return self._get_bulk, [bulk]
            case "POST", "bulks", bulk, "jobs":
                return self._chunk, [bulk]
            case "POST", "bulks", bulk, ("seal" | "cancel" | "pause" | "resume") as verb:
                return self._steer, [bulk, verb]
        raise Conflict(f"{request.method} {request.path} is answered by a running API alone, not by Client.direct")

    # --- submission ---

    def _submit(self, request: Request, parts: list[str]) -> Answer:
        prepared = self._submitter.jobs(
            request.body or b"",
            model=parts[0],
            caller=self._caller,
            now_ms=self._store.now_ms(),
            idempotency_key=request.idempotency_key,
        )
        accepted = self._commit(prepared)
        shared: dict[str, Any] = {
            "model": prepared.version.name,
            "lane": prepared.lane.word,
            "created_at": rfc3339(accepted.created_at_ms),
            "replayed": accepted.replayed,
        }
        if prepared.several:
            return 202, schemas.SubmittedJobs(ids=list(map(format_id, accepted.ids)), **shared)
        state = self._jobs.view(accepted.ids[0], results=False).state if accepted.replayed else State.QUEUED
        return 202, schemas.SubmittedJob(id=format_id(accepted.ids[0]), state=state.word, **shared)  # type: ignore[arg-type]

    def _chunk(self, request: Request, parts: list[str]) -> Answer:
        bulk = self._bulk(parts[0])
        prepared = self._submitter.chunk(
            request.body or b"",
            plan=self._submitter.plan(bulk),
            caller=self._caller,
            idempotency_key=request.idempotency_key,
        )
        accepted = self._commit(prepared)
        return 202, schemas.ChunkAccepted(
            bulk_id=parts[0],
            first_id=format_id(accepted.ids[0]),
            accepted=len(accepted.ids),
            created_at=rfc3339(accepted.created_at_ms),
            replayed=accepted.replayed,
        )

    def _redrive_one(self, request: Request, parts: list[str]) -> Answer:
        to = read_envelope(_decode_redrive_one, request.body or b"{}").to
        steps = self._redriver.one(number_of(parts[0], "job"), to=to, caller=self._caller)
        return 202, perform(steps, self._commit_all)

    def _redrive_some(self, request: Request, parts: list[str]) -> Answer:
        wanted = read_envelope(_decode_redrive, request.body or b"")
        return 200, perform(self._redriver.some(wanted, caller=self._caller), self._commit_all)

    def _commit(self, prepared: Prepared) -> Accepted:
        [outcome] = self._commit_all([prepared.submission])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _commit_all(self, submissions: Sequence[Submission]) -> Sequence[Accepted | Exception]:
        """In one transaction, and what has tickets of its own is ticketed."""
        taken = [self._allowance.take(each.queue_id, len(each.inputs)) for each in submissions]
        submissions = [
            msgspec.structs.replace(each, ticketed=True) if ticketed else each
            for each, ticketed in zip(submissions, taken, strict=True)
        ]
        outcomes = self._store.submit(submissions)
        self._publisher.committed(submissions, outcomes)
        return outcomes

    def _queue_name(self, queue_id: int) -> str | None:
        return queue_names(self._catalog.snapshot.versions).get(queue_id)

    def _upload(self, request: Request, parts: list[str]) -> Answer:
        with self._payload_lock:
            [number] = self._payload_ids.take(1, now_ms=self._store.now_ms())
        location = location_of(number, tenant_id=TENANT_ID)
        limit = self._settings.server.max_payload_bytes
        self._store.expect_payload(number, location=location)
        stored = self._objects.put(location, [request.body or b""], max_bytes=limit)
        info = PayloadInfo(
            id=number,
            tenant_id=TENANT_ID,
            content_type=request.content_type,
            size=stored.size,
            digest=stored.digest,
            location=location,
        )
        self._store.add_payload(info)
        return 201, schemas.Payload(
            id=format_id(number), content_type=info.content_type, size=stored.size, sha256=stored.digest.hex()
        )

    # --- bulks ---

    def _create_bulk(self, request: Request, parts: list[str]) -> Answer:
        config = self._submitter.bulk(request.body or b"", caller=self._caller, idempotency_key=request.idempotency_key)
        return 201, self._shown_bulk(self._store.create_bulk(config))

    def _get_bulk(self, request: Request, parts: list[str]) -> Answer:
        return 200, self._shown_bulk(self._bulk(parts[0]))

    def _steer(self, request: Request, parts: list[str]) -> Answer:
        number, verb = number_of(parts[0], "bulk"), parts[1]
        if verb == "seal":
            view = self._store.seal_bulk(tenant_id=TENANT_ID, bulk_id=number)
        elif verb == "cancel":
            view = self._store.cancel_bulk(number, tenant_id=TENANT_ID)
        else:
            view = self._store.pause_bulk(number, tenant_id=TENANT_ID, paused=verb == "pause")
        return 200, self._shown_bulk(view)

    def _frames(self, bulk_id: int, *, after: int, wait_seconds: float) -> Iterator[bytes]:
        """The bulk's results from the cursor on; an empty frame now and then; ends after a quiet `wait_seconds`."""
        pages = ResultPages(self._store, bulk_id=bulk_id, tenant_id=TENANT_ID, after=after)
        pause, end = SHORTEST_LOOK_SECONDS, time.monotonic() + wait_seconds
        while True:
            page = pages.next()
            if page is not None:
                yield results.pack_frame(page)
                if page.finished:
                    return
                if page.records:
                    pause, end = SHORTEST_LOOK_SECONDS, time.monotonic() + wait_seconds
                continue
            if time.monotonic() >= end:
                yield results.pack_frame(results.Frame(pages.cursor, False))
                return
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)

    def _bulk(self, text: str) -> BulkView:
        return self._store.get_bulk(number_of(text, "bulk"), tenant_id=TENANT_ID)

    def _shown_bulk(self, view: BulkView) -> schemas.Bulk:
        return rendering.bulk(view, load=self._catalog.load(view.queue_id))

    # --- models ---

    def _models(self, request: Request, parts: list[str]) -> Answer:
        self._catalog.refresh(older_than_seconds=0.5)
        snapshot, oldest_ms, now_ms = self._catalog.snapshot, self._store.oldest_queued_ms(), self._store.now_ms()
        models: dict[str, list[schemas.ModelVersion]] = {}
        for version in snapshot.versions:
            queues = [
                rendering.queue(snapshot.queues[number], oldest_ms=oldest_ms.get(number), now_ms=now_ms)
                for number in version.queue_ids.values()
            ]
            shown = rendering.model_version(
                version, queues=queues, consumers=snapshot.consumers, pools=self._settings.pools
            )
            models.setdefault(version.model, []).append(shown)
        found = [schemas.Model(name=name, versions=versions) for name, versions in sorted(models.items())]
        return 200, schemas.ModelList(models=found)

    def _model(self, request: Request, parts: list[str]) -> Answer:
        _, answer = self._models(request, parts)
        assert isinstance(answer, schemas.ModelList)
        name, _, version = parts[0].partition("@")
        for model in answer.models:
            versions = [each for each in model.versions if not version or each.version == version]
            if model.name == name and versions:
                return 200, schemas.Model(name=name, versions=versions)
        self._catalog.resolve(parts[0])  # raises, naming what there is
        raise NotFound(f'there is no model "{parts[0]}"')

    def _set_paused(self, request: Request, parts: list[str]) -> Answer:
        name, verb = parts
        lanes = [lane for lane in Lane if request.query.get("lane") in {None, lane.word}]
        versions = [version for version in self._catalog.snapshot.versions if name in {version.name, version.model}]
        if not versions:
            self._catalog.resolve(name)  # raises, naming what there is
        for version in versions:
            for lane in lanes:
                self._store.set_queue_paused(version.queue_ids[lane], paused=verb == "pause")
        self._catalog.refresh()
        return self._model(request, [name])
