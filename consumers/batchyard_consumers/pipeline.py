"""The stages and the bounded channels between them.

    claim → chunks → preprocess (two threads) → pools → device → outputs → postprocess → finished → persist

The device has a thread for each share of it, see `device.py`; a continuous version has one of its own beside them.

Jobs travel in lists. What a stage may take in is bounded by `Holding` at the claim and by each channel after it, so
that a slow stage stops the ones before it. A thread never just dies: what it raises ends the process (`on_crash`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from batchyard.flight_recorder import FlightRecorder
from batchyard.jobs import ClaimedJob
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.channels import Channel, Closed
from batchyard_consumers.claiming import Claimer, HeadReader, HeldTicket, Inbox, ServedQueue
from batchyard_consumers.continuous import Continuous
from batchyard_consumers.device import Device, OnLost, Running, Shares
from batchyard_consumers.executing import Executing
from batchyard_consumers.held import Batch, Chunk, Finished, Holding
from batchyard_consumers.items import FetchFor, Items
from batchyard_consumers.meter import Meter
from batchyard_consumers.persisting import MAX_ROWS, Persister
from batchyard_consumers.pools import Pools
from batchyard_consumers.postprocessing import Postprocessor
from batchyard_consumers.preparing import Preparer
from batchyard_consumers.retries import RetryPolicy
from batchyard_consumers.served import Served
from batchyard_consumers.sharing import Sharing

PREPROCESS_THREADS = 2
CLAIMED_CHUNKS = 64
BATCHES_BEHIND_DEVICE = 2

log = logging.getLogger(__name__)


class Handed(NamedTuple):
    """Jobs that were taken out of the pipeline, with the owner that they were claimed under."""

    owner: int
    jobs: list[ClaimedJob]


class Pipeline:
    """All stages of one consumer."""

    def __init__(
        self,
        *,
        store: JobStore,
        queues: Sequence[ServedQueue],
        device: str,
        shares: Shares,
        owner: int,
        retries: RetryPolicy,
        meter: Meter,
        fetch_for: FetchFor,
        read_head: HeadReader,
        hint: Callable[[Sequence[int]], None],
        on_tickets_done: Callable[[Sequence[HeldTicket]], None],
        on_crash: Callable[[str, BaseException], None],
        on_lost: OnLost,
        recorder: FlightRecorder,
    ) -> None:
        self.owner = owner
        self._meter = meter
        self._store = store
        self.executing = Executing(store, recorder)
        self.executing.registered(owner)
        self.versions: list[Served] = list({id(queue.served): queue.served for queue in queues}.values())
        self.holding = Holding()
        self.inbox = Inbox(self.holding.changed)
        self.hurry = threading.Event()
        """Set when nothing may wait any more."""
        self._on_crash = on_crash
        self._chunks: Channel[Chunk] = Channel(limit=CLAIMED_CHUNKS)
        self._outputs: Channel[Batch] = Channel(limit=BATCHES_BEHIND_DEVICE)
        self._finished: Channel[Finished] = Channel(limit=2 * MAX_ROWS, weigh=lambda chunk: len(chunk.outcomes))
        self._pools = Pools(self.versions, holding=self.holding, owner=owner, now_ms=store.now_ms)
        self.claimer = Claimer(
            store=store,
            queues=queues,
            inbox=self.inbox,
            chunks=self._chunks,
            holding=self.holding,
            meter=meter,
            owner=lambda: self.owner,
            read_head=read_head,
            on_done=on_tickets_done,
        )
        self._items = Items(fetch_for)
        self._preparer = Preparer(
            chunks=self._chunks,
            pools=self._pools,
            finished=self._finished,
            holding=self.holding,
            retries=retries,
            items=self._items,
            sharing=Sharing(
                store=store, finished=self._finished, holding=self.holding, executing=self.executing, meter=meter
            ),
            executing=self.executing,
            meter=meter,
        )
        self.device = Device(
            name=device,
            shares=shares,
            pools=self._pools,
            outputs=self._outputs,
            finished=self._finished,
            retries=retries,
            items=self._items,
            executing=self.executing,
            meter=meter,
            on_lost=on_lost,
        )
        self._postprocessor = Postprocessor(
            outputs=self._outputs,
            finished=self._finished,
            device=self.device,
            retries=retries,
            executing=self.executing,
            meter=meter,
        )
        self.persister = Persister(
            store=store, finished=self._finished, holding=self.holding, meter=meter, hint=hint, hurry=self.hurry
        )
        self._continuous: list[Continuous] = []
        self._devices = [f"device-{number}" for number in range(self.device.shares.count)]
        self._threads = {
            "claim": self._thread("claim", self.claimer.run),
            **{
                f"preprocess-{n}": self._thread(f"preprocess-{n}", self._preparer.run)
                for n in range(PREPROCESS_THREADS)
            },
            **{name: self._thread(name, partial(self.device.run, number)) for number, name in enumerate(self._devices)},
            "postprocess": self._thread("postprocess", self._postprocessor.run),
            "persist": self._thread("persist", self.persister.run),
        }

    def start(self) -> None:
        for thread in self._threads.values():
            thread.start()

    def spawn(self, name: str, body: Callable[[], None]) -> None:
        """Run one more thread that may not just die."""
        self._threads[name] = self._thread(name, body)
        self._threads[name].start()

    def serve(self, served: Served) -> None:
        """A version is loaded: where its jobs join and leave between steps it gets a thread for that."""
        if served.is_continuous:
            loop = Continuous(
                served,
                pools=self._pools,
                outputs=self._outputs,
                finished=self._finished,
                device=self.device,
                items=self._items,
                executing=self.executing,
                meter=self._meter,
                tell=self._store.report_progress,
            )
            name = f"continuous-{served.name}"
            self._devices.append(name)
            self.spawn(name, loop.run)
            self._continuous.append(loop)

    def leave_out(self, served: Served) -> None:
        """Claim nothing more of a version that is to leave the memory."""
        self.claimer.leave_out(served)

    def is_free_of(self, served: Served) -> bool:
        """Whether no job that this consumer holds needs the version's model any more."""
        return not self.holding.ahead(served) and self._pools.is_free_of(served)

    @property
    def running(self) -> list[Running]:
        """What the device executes now."""
        return self.device.running + [running for loop in self._continuous for running in loop.running]

    def stages(self) -> dict[str, int]:
        """Jobs held, by stage; read without a lock, so they need not add up exactly."""
        on_device = sum(len(running.batch.jobs) for running in self.running)
        held, pooled, finished = (
            self.holding.jobs,
            self._pools.jobs,
            self._finished.weight + self.persister.pending_jobs,
        )
        ahead = sum(self.holding.ahead(served) for served in self.versions)
        return {
            "preprocess": max(0, ahead - pooled),
            "pool": pooled,
            "device": on_device,
            "postprocess": max(0, held - ahead - on_device - finished),
            "persist": finished,
        }

    @property
    def is_saturated(self) -> bool:
        """Whether more work is at hand than the stages have taken in."""
        return len(self.inbox) > 0 or self._pools.jobs > 0

    def cancel(self, ids: frozenset[int]) -> None:
        """Drop jobs whose cancellation was asked for, as far as they wait for the device or may leave it; the others
        are written as cancelled by the store when they finish."""
        for outcome in self._pools.drop(ids):
            # Never waiting: this is the heartbeat's thread, and the lease matters more than a full channel.
            self._finished.put(Finished(owner=self.owner, outcomes=[outcome]), at_once=True)
        for loop in self._continuous:
            loop.cancel(ids)

    def restart(self, owner: int) -> None:
        """The registration is over: forget everything held and go on under a new one.

        What is on the device or behind it runs to its end; its writes are fenced by the old owner and change nothing.
        """
        for chunk in self._chunks.take_all():
            self._forget(chunk.served, chunk.jobs, was_batched=False)
        self.owner = owner
        self.executing.registered(owner)
        for served, jobs, was_batched in self._pools.take_all(owner=owner):
            self._forget(served, jobs, was_batched=was_batched)
        self.inbox.changed.set()

    # --- the end ---

    def stop_claiming(self) -> None:
        self.claimer.stop()

    def take_unstarted(self, *, timeout: float) -> list[Handed]:
        """Close the stages before the device and take what they hold. Call once, after `stop_claiming`."""
        self._join("claim", timeout=timeout)
        handed: list[Handed] = []
        for chunk in self._chunks.take_all():
            self._forget(chunk.served, chunk.jobs, was_batched=False)
            handed.append(Handed(chunk.owner, list(chunk.jobs)))
        self._chunks.close()
        self._pools.close()
        for number in range(PREPROCESS_THREADS):
            self._join(f"preprocess-{number}", timeout=timeout)
        handed += [Handed(owner, list(jobs)) for owner, jobs in self._preparer.returned]
        return handed + self.take_pooled()

    def take_pooled(self) -> list[Handed]:
        """What waits for the device."""
        handed: list[Handed] = []
        for served, jobs, was_batched in self._pools.take_all():
            self._forget(served, jobs, was_batched=was_batched)
            handed.append(Handed(self.owner, jobs))
        return handed

    def finish_device(self, *, timeout: float) -> bool:
        """Wait for the batches on the device; whether they ended."""
        give_up = time.monotonic() + timeout
        return all(self._join(name, timeout=give_up - time.monotonic()) for name in self._devices)

    def finish_writing(self, *, timeout: float) -> bool:
        """Let everything behind the device be written; whether it was."""
        self._outputs.close()
        was_encoded = self._join("postprocess", timeout=timeout)
        self._finished.close()
        return self._join("persist", timeout=timeout) and was_encoded

    def _forget(self, served: Served, jobs: Sequence[ClaimedJob], *, was_batched: bool) -> None:
        if not was_batched:
            self.holding.left_pool(served, len(jobs))
        self.holding.let_go(len(jobs))

    def _join(self, name: str, *, timeout: float) -> bool:
        thread = self._threads[name]
        if thread.ident is not None:
            thread.join(max(0.0, timeout))
        return not thread.is_alive()

    def _thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                body()
            except Closed:
                return
            except BaseException as error:  # noqa: BLE001  whatever it is, the process must not go on without the stage
                log_event(log, "stage_crashed", level=logging.ERROR, error=error, stage=name)
                self._on_crash(name, error)

        return threading.Thread(target=guarded, name=f"batchyard-{name}", daemon=True)
