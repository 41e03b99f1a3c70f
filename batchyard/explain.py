"""Why a job is not finished yet, and when it will be. Pure."""

from __future__ import annotations

import msgspec

from batchyard.catalog import QueueLoad
from batchyard.jobs import State
from batchyard.schemas import WaitReason
from batchyard.store.base import JobView


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What a poller sees beside the state."""

    position: int | None = None
    eta_seconds: float | None = None
    waits_because: WaitReason | None = None


def outlook(job: JobView, *, load: QueueLoad, position: int | None, now_ms: int) -> Outlook:
    """Explain a job from its queue's load; `position` is that of `JobStore.position`, None where not asked."""
    if job.state == State.QUEUED:
        return Outlook(
            position=position,
            eta_seconds=_eta_seconds(load, position=position),
            waits_because=_why_queued(job, load=load, position=position),
        )
    if job.is_following:
        message = "another job that computes the same goes first"
        return Outlook(waits_because=WaitReason(code="same_computation", message=message))
    if job.state == State.WAITING:
        due_in = max(0.0, ((job.not_before_ms or now_ms) - now_ms) / 1000)
        message = f"backs off for {due_in:.1f} s after failure {job.failures} of {job.max_failures}"
        return Outlook(waits_because=WaitReason(code="retry_backoff", message=message))
    return Outlook()


def _why_queued(job: JobView, *, load: QueueLoad, position: int | None) -> WaitReason:
    name = load.version.name
    if load.is_paused:
        return WaitReason(code="paused", message=f"the queue of {name} ({load.lane.word}) is paused")
    if job.is_held:
        return WaitReason(code="paused", message="its bulk is paused")
    if not load.ready:
        return _why_not_served(load, name=name)
    if position is None:
        return WaitReason(code="behind_jobs", message=f"one of {max(load.queued, 1)} queued jobs")
    if position == 0:
        return WaitReason(code="behind_jobs", message="next to be claimed")
    return WaitReason(code="behind_jobs", message=f"behind about {position} job{'s' if position != 1 else ''}")


def _why_not_served(load: QueueLoad, *, name: str) -> WaitReason:
    if load.version.load_error is not None:
        return WaitReason(code="model_failed", message=f"{name} could not be loaded: {load.version.load_error}")
    if load.starting:
        usual = load.version.load_seconds
        takes = "" if usual is None else f", which took {usual:.1f} s the last time"
        return WaitReason(code="model_loading", message=f"a consumer is starting and loads {name}{takes}")
    if load.has_pool:
        return WaitReason(code="no_capacity", message=f"no consumer of {name} ({load.lane.word}) is running yet")
    return WaitReason(code="no_consumer", message=f"no pool serves {name} in the {load.lane.word} lane")


def _eta_seconds(load: QueueLoad, *, position: int | None) -> float | None:
    """Until the job is finished; None where nothing serves its queue or no speed is known."""
    if position is None or load.is_paused or not load.is_served:
        return None
    seconds = load.seconds_for(position + 1)
    return None if seconds is None else round(seconds, 3)
