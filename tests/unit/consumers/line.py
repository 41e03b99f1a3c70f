"""A whole pipeline in this process: the memory store, tickets put in by hand, models given as instances."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from batchyard import results
from batchyard.flight_recorder import FlightRecorder
from batchyard.jobs import ClaimedJob, Lane, State, Submission
from batchyard.model import Model
from batchyard.payloads import fetch_from
from batchyard.store.base import JobStore, JobView, ModelConfig
from batchyard.testing import memory_store
from batchyard_consumers.catalog import queues_of
from batchyard_consumers.claiming import HeldTicket
from batchyard_consumers.device import Shares
from batchyard_consumers.meter import Meter
from batchyard_consumers.pipeline import Pipeline
from batchyard_consumers.retries import RetryPolicy
from batchyard_consumers.served import Served
from tests.unit.consumers.jobs import served

WAIT_SECONDS = 20.0


class Line:
    """One consumer's stages over one store. `silent` keeps the idle claim from finding anything by itself."""

    def __init__(
        self,
        models: Mapping[str, Model | None],
        *,
        capacity: str = "on_demand",
        budget: int | None = None,
        options: Mapping[str, Any] | None = None,
        store: JobStore | None = None,
        read_head: Callable[[int, int], Sequence[int]] = lambda _queue, _limit: (),
        objects: Any = None,
        **settings: Any,
    ) -> None:
        self.store = store or memory_store()
        versions = self.store.sync_models([ModelConfig(model=name, version="1", runtime="t:M") for name in models])
        self.served: dict[str, Served] = {
            version.model: served(
                models[version.model],
                name=version.model,
                budget=budget,
                version_id=version.id,
                queue_ids=version.queue_ids,
                options=options,
                **settings,
            )
            for version in versions
        }
        self.queues = queues_of([self.served[name] for name in models], capacity=capacity)
        self.meter = Meter()
        self.hinted: list[int] = []
        self.done: list[HeldTicket] = []
        self.crashes: list[str] = []
        self.lost: list[tuple[int, list[int], Exception]] = []
        self.owner = self.register()
        self.pipeline = Pipeline(
            store=self.store,
            queues=self.queues,
            device="cpu",
            shares=Shares(count=2, cores=2),
            owner=self.owner,
            retries=RetryPolicy(base_seconds=0.001, max_seconds=0.002),
            meter=self.meter,
            fetch_for=lambda tenant_id: fetch_from(self.store, objects, tenant_id=tenant_id),
            read_head=read_head,
            hint=self.hinted.extend,
            on_tickets_done=self.done.extend,
            on_crash=lambda stage, error: self.crashes.append(f"{stage}: {error!r}"),
            on_lost=lambda owner, jobs, error: self.lost.append((owner, [job.id for job in jobs], error)),
            recorder=FlightRecorder(None),
        )

    def register(self, *, lease_ms: int = 60_000) -> int:
        return self.store.register_consumer(
            pool="p",
            host="h",
            pid=1,
            device="cpu",
            capacity="on_demand",
            queue_ids=[queue.queue_id for queue in self.queues],
            lease_ms=lease_ms,
        )

    def __enter__(self) -> "Line":
        self.pipeline.start()
        for version in self.served.values():
            self.pipeline.serve(version)
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.stop_claiming()
        self.pipeline.take_unstarted(timeout=5)
        self.pipeline.hurry.set()
        self.pipeline.finish_device(timeout=5)
        self.pipeline.finish_writing(timeout=5)
        self.store.close()
        assert self.crashes == []

    def submit(
        self, model: str, inputs: Sequence[Any], *, lane: Lane = Lane.FIRM, tickets: bool = True, **fields: Any
    ) -> list[int]:
        """Commit jobs and hand their tickets to the inbox; `inputs` are values, or bytes as they are."""
        queue_id = self.served[model].queue_ids[lane]
        bodies = [value if isinstance(value, bytes) else msgspec.json.encode(value) for value in inputs]
        made: dict[str, Any] = {"tenant_id": 1, "queue_id": queue_id, "inputs": bodies, "costs": [1] * len(bodies)}
        accepted = self.store.submit([Submission(**(made | fields))])[0]
        assert not isinstance(accepted, Exception), accepted
        ids = list(accepted.ids)
        if tickets:
            self.ticket(queue_id, ids)
        return ids

    def ticket(self, queue_id: int, ids: Sequence[int], *, size: int = 128) -> None:
        for start in range(0, len(ids), size):
            self.pipeline.inbox.put(HeldTicket(queue_id=queue_id, ids=ids[start : start + size]))

    def finish(self, ids: Sequence[int]) -> list[JobView]:
        """Wait until all are terminal, in the order of the ids; retries fall due meanwhile."""

        def finished() -> bool:
            for queue_id, due in self.store.promote_due(limit=1000).items():
                self.ticket(queue_id, due)
            return len(self.store.finished_among(ids)) == len(ids)

        until(finished)
        views = {view.id: view for view in self.store.get_jobs(ids, tenant_id=1)}
        return [views[number] for number in ids]

    def claim(self, ids: Sequence[int], *, queue_id: int, owner: int | None = None) -> list[ClaimedJob]:
        return self.store.claim([(queue_id, ids)], owner=owner or self.owner)


def until(condition: Callable[[], object], *, timeout: float = WAIT_SECONDS) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, "not in time"
        time.sleep(0.002)


def value_of(view: JobView) -> Any:
    """The decoded result; of a failed job its error's code."""
    if view.state is not State.SUCCEEDED:
        return view.error.code if view.error is not None else view.state.word
    assert view.result_format is not None
    assert view.result_body is not None
    return results.decode(view.result_format, view.result_body)
