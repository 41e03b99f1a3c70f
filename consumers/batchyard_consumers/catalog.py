"""Which versions a pool serves, and in which order its queues are taken."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.errors import ConfigurationError
from batchyard.jobs import Lane
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard.store.base import JobStore, ModelConfig, ModelVersion
from batchyard_consumers.claiming import ServedQueue
from batchyard_consumers.served import Served
from batchyard_consumers.speed import Speed


def find_pool(settings: Settings, name: str) -> PoolSettings:
    """The pool of that name; ConfigurationError names those that exist."""
    for pool in settings.pools:
        if pool.name == name:
            return pool
    known = ", ".join(pool.name for pool in settings.pools) or "none; add [pools.NAME] to batchyard.toml"
    raise ConfigurationError([f"there is no pool {name!r}; there are: {known}"])


def models_of(settings: Settings, pool: PoolSettings) -> list[ModelSettings]:
    """The versions that a pool names, in its order, each once; a bare name means all its versions."""
    chosen: dict[str, ModelSettings] = {}
    for name in pool.models:
        for model in settings.models:
            if name in {model.name, model.qualified}:
                chosen.setdefault(model.qualified, model)
    return list(chosen.values())


def versions_in(store: JobStore, settings: Settings, wanted: Sequence[ModelSettings]) -> list[Served]:
    """The wanted versions as the database knows them.

    The API, `up` and `migrate` write the configuration's models there; a consumer that comes first does it itself.
    """
    known = {version.name: version for version in store.models() if version.active}
    if any(model.qualified not in known for model in wanted):
        known = {
            version.name: version for version in store.sync_models([config_of(model) for model in settings.models])
        }
    return [_served(known[model.qualified], model) for model in wanted]


def queues_of(versions: Sequence[Served], *, capacity: str) -> list[ServedQueue]:
    """The queues in the order served: a spot consumer takes tolerant ones only, any other firm ones first."""
    lanes = (Lane.TOLERANT,) if capacity == "spot" else (Lane.FIRM, Lane.TOLERANT)
    return [
        ServedQueue(queue_id=served.queue_ids[lane], served=served, is_firm=lane is Lane.FIRM)
        for lane in lanes
        for served in versions
    ]


def config_of(model: ModelSettings) -> ModelConfig:
    return ModelConfig(
        model=model.name,
        version=model.version,
        runtime=model.runtime,
        weight=model.weight,
        default_lane=model.lane,
    )


def _served(version: ModelVersion, model: ModelSettings) -> Served:
    return Served(
        version_id=version.id,
        settings=model,
        queue_ids=version.queue_ids,
        speed=Speed(configured_budget=model.batch_budget),
    )
