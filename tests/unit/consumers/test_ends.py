"""Heartbeat, watchdog and drain, over a whole pipeline in this process."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from batchyard.broker import Broker
from batchyard.errors import Unavailable
from batchyard.jobs import Lane, State
from batchyard.model import Model
from batchyard.store.base import Renewal
from batchyard_consumers.drain import Drain
from batchyard_consumers.executing import Task
from batchyard_consumers.heartbeat import PATH_SECONDS_PER_JOB, Heartbeat, SpeedReporter
from batchyard_consumers.watchdog import DEAF_SECONDS, Watchdog
from tests.unit.consumers.line import Line, until
from tests.unit.consumers.test_pipeline import Gate


def heartbeat(line: Line) -> Heartbeat:
    return Heartbeat(
        store=line.store,
        pipeline=line.pipeline,
        lease_seconds=30.0,
        register=line.register,
        stats=dict,
        beat=lambda: None,
    )


def drain(line: Line, *, grace_seconds: float) -> tuple[Drain, Broker]:
    broker = Broker("memory://")
    names = {queue.queue_id: f"ended-{queue.queue_id}" for queue in line.queues}
    made = Drain(
        line.pipeline,
        store=line.store,
        broker=broker,
        heartbeat=heartbeat(line),
        meter=line.meter,
        grace_seconds=grace_seconds,
        queue_names=names,
    )
    return made, broker


def busy(line: Line, gate: Gate) -> list[int]:
    """One job on the device, two in the pool, and a ticket nobody has claimed."""
    ids = line.submit("gate", ["a", "b", "c"])
    assert gate.entered.wait(10)
    until(lambda: line.pipeline.stages()["pool"] == 2)
    line.pipeline.stop_claiming()
    return ids


def test_a_drain_finishes_the_batch_and_hands_back_the_rest() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        ids = busy(line, gate)
        unclaimed = line.submit("gate", ["d"])
        ending, broker = drain(line, grace_seconds=20)
        thread = threading.Thread(target=ending.run, kwargs={"reason": "test"})
        thread.start()
        until(lambda: line.store.get_jobs(ids, tenant_id=1)[1].state is State.QUEUED)
        gate.opened.set()
        thread.join(10)
        views = {view.id: view for view in line.store.get_jobs([*ids, *unclaimed], tenant_id=1)}
        assert [views[number].state for number in ids] == [State.SUCCEEDED, State.QUEUED, State.QUEUED]
        assert {view.preemptions for view in views.values()} == {0}
        assert broker.depth(f"ended-{line.served['gate'].queue_ids[Lane.FIRM]}") == 2
        assert line.store.consumers()[0].state == "gone"
        assert line.hinted == ids[:1]


def test_a_batch_that_does_not_fit_the_grace_is_handed_back_too() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        line.served["gate"].speed.observe(padded_cost=1, cost=1, jobs=1, seconds=60.0)
        ids = busy(line, gate)
        ending, broker = drain(line, grace_seconds=5)
        ending.run(reason="test")
        views = sorted(line.store.get_jobs(ids, tenant_id=1), key=lambda view: view.id)
        assert {view.state for view in views} == {State.QUEUED}
        assert [view.preemptions for view in views] == [1, 0, 0]
        # Its late result changes nothing.
        gate.opened.set()
        until(lambda: not line.pipeline.device.running)
        assert line.store.get_jobs(ids[:1], tenant_id=1)[0].state is State.QUEUED
        broker.close()


def test_of_several_batches_only_those_that_do_not_fit_are_handed_back() -> None:
    gate = Gate()
    gate.concurrent_forward = True
    with Line({"gate": gate}, budget=1) as line:
        ids = line.submit("gate", ["a", "b"])
        until(lambda: len(line.pipeline.device.running) == 2)
        line.pipeline.stop_claiming()
        ending, broker = drain(line, grace_seconds=60)
        slow, quick = line.pipeline.device.running
        line.pipeline.device._running[0] = replace(slow, predicted_seconds=600.0)
        thread = threading.Thread(target=ending.run, kwargs={"reason": "test"})
        thread.start()
        late, early = slow.batch.jobs[0].id, quick.batch.jobs[0].id
        until(lambda: line.store.get_jobs([late], tenant_id=1)[0].state is State.QUEUED)
        assert line.store.get_jobs([early], tenant_id=1)[0].state is State.RUNNING
        gate.opened.set()
        thread.join(10)
        views = {view.id: view for view in line.store.get_jobs(ids, tenant_id=1)}
        assert (views[late].state, views[late].preemptions) == (State.QUEUED, 1)
        assert (views[early].state, views[early].preemptions) == (State.SUCCEEDED, 0)
        broker.close()


def test_after_a_notice_all_that_comes_back_was_preempted() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        ids = busy(line, gate)
        ending, broker = drain(line, grace_seconds=600)
        ending._heartbeat.is_preempted = True
        ending._heartbeat.zone = "z-1"
        ending.shorten(grace_seconds=2.5)
        started = time.monotonic()
        ending.run(reason="test")
        assert time.monotonic() - started < 10
        views = line.store.get_jobs(ids, tenant_id=1)
        assert [(view.state, view.preemptions, view.failures) for view in views] == [(State.QUEUED, 1, 0)] * 3
        (gone,) = line.store.consumers()
        assert (gone.state, gone.zone) == ("gone", "z-1")
        assert gone.preempted_at_ms is not None
        gate.opened.set()
        broker.close()


def test_a_hurried_drain_waits_for_nothing() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        ids = busy(line, gate)
        ending, broker = drain(line, grace_seconds=600)
        ending.hurry()
        ending.run(reason="test")
        assert {view.state for view in line.store.get_jobs(ids, tenant_id=1)} == {State.QUEUED}
        gate.opened.set()
        broker.close()


def test_a_lost_registration_is_replaced() -> None:
    with Line({"noop": Gate()}) as line:
        beat = heartbeat(line)
        beat.renew()
        assert line.pipeline.owner == line.owner
        line.store.deregister(line.owner)
        beat.renew()
        assert line.pipeline.owner != line.owner
        assert [info.state for info in line.store.consumers() if info.id == line.pipeline.owner] == ["starting"]


def test_an_outage_of_the_database_changes_nothing() -> None:
    with Line({"noop": Gate()}) as line:
        renew = line.store.renew

        def away(_owner: int, **_told: Any) -> Renewal:
            raise Unavailable("away")

        line.store.renew = away  # type: ignore[assignment,method-assign]
        heartbeat(line).renew()
        line.store.renew = renew  # type: ignore[method-assign]
        assert line.pipeline.owner == line.owner


def test_a_pass_beyond_its_limit_is_noticed() -> None:
    now = [0.0]
    hung: list[Task] = []
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        watchdog = Watchdog(
            line.pipeline,
            waiting_tickets=lambda: 0,
            reconnect=lambda: None,
            on_hang=lambda task, _served: hung.append(task),
            clock=lambda: now[0],
        )
        ids = line.submit("gate", ["a"])
        assert gate.entered.wait(10)
        (task,) = line.pipeline.executing.tasks
        now[0] = task.since + 299.0
        watchdog.check()
        assert hung == []
        now[0] = task.since + 301.0
        watchdog.check()
        assert [job.id for job in hung[0].jobs] == ids
        gate.opened.set()
        line.finish(ids)


def test_every_pass_is_watched() -> None:
    now = [0.0]
    hung: list[Task] = []
    gate = Gate()
    gate.concurrent_forward = True
    with Line({"gate": gate}, budget=1) as line:
        watchdog = Watchdog(
            line.pipeline,
            waiting_tickets=lambda: 0,
            reconnect=lambda: None,
            on_hang=lambda task, _served: hung.append(task),
            clock=lambda: now[0],
        )
        ids = line.submit("gate", ["a", "b"])
        until(lambda: len(line.pipeline.executing.tasks) == 2)
        tasks = line.pipeline.executing._tasks
        slot, second = max(tasks.items(), key=lambda item: item[1].since)
        tasks[slot] = second._replace(since=second.since - 300.0)
        now[0] = second.since + 1.0
        watchdog.check()
        assert [task.jobs for task in hung] == [second.jobs]
        gate.opened.set()
        line.finish(ids)


def test_a_deaf_connection_is_replaced_only_where_tickets_wait() -> None:
    line = Line({"gate": None})
    now, waiting, asked = [line.pipeline.inbox.last_ticket_at], [0], []
    watchdog = Watchdog(
        line.pipeline,
        waiting_tickets=lambda: waiting[0],
        reconnect=lambda: asked.append(now[0]),
        on_hang=lambda *_: None,
        clock=lambda: now[0],
    )
    watchdog.check()
    now[0] += DEAF_SECONDS + 1
    watchdog.check()
    assert asked == []
    waiting[0] = 3
    now[0] += DEAF_SECONDS + 1
    watchdog.check()
    watchdog.check()
    assert len(asked) == 1
    line.store.close()


class Quick(Model):
    def forward(self, items: Sequence[Any]) -> Any:
        return items


def test_what_a_job_takes_is_reported_with_the_path_around_the_device() -> None:
    line = Line({"quick": Quick()})
    served = line.served["quick"]
    now = [0.0]
    reporter = SpeedReporter(line.store, clock=lambda: now[0])
    served.speed.observe(padded_cost=100, cost=100, jobs=100, seconds=1e-5, input_bytes=200)
    reporter.report([served])
    (version,) = line.store.models()
    assert version.seconds_per_unit == PATH_SECONDS_PER_JOB
    assert version.units_per_byte == 0.5
    # While work is at hand the device is busy for a tenth of the time: a job takes ten times its share of it.
    served.speed.observe(padded_cost=100, cost=100, jobs=100, seconds=0.1, input_bytes=200)
    reporter.sample(busy_seconds=0.0, is_saturated=True)
    now[0] = 6.0
    reporter.sample(busy_seconds=0.6, is_saturated=True)
    reporter.report([served])
    assert served.speed.seconds_per_unit is not None
    expected = 10 * served.speed.seconds_per_unit
    assert abs((line.store.models()[0].seconds_per_unit or 0) - expected) < 1e-9
    line.store.close()
