"""The configuration: flag > environment (`BATCHYARD_…`) > `batchyard.toml` > default; frozen, read once at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from batchyard.jobs import Lane

RUNTIMES = (
    "image-classification",
    "kserve",
    "openai",
    "reranking",
    "sentence-transformers",
    "text-classification",
    "text-generation",
    "token-classification",
    "torch-export",
    "torchscript",
)
"""What a model may name as its runtime, beside a class of the user's own; each needs a `source`."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    bind: str = "127.0.0.1:8080"
    max_body_bytes: int = 32 * 1024 * 1024
    """Of one request, payload uploads apart."""
    max_payload_bytes: int = 256 * 1024 * 1024
    max_input_bytes: int = 1024 * 1024
    """Of one input as JSON; larger things go through POST /v1/payloads."""
    max_inputs: int = 10_000
    """Of one call, and of one chunk of a bulk."""
    require_keys: bool = False
    """Always true where `bind` is not loopback."""

    @property
    def host(self) -> str:
        return self.bind.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """0: any free one."""
        return int(self.bind.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    url: str = "sqlite"
    """`sqlite` (a file in the state folder), `sqlite:///PATH`, or `postgresql+psycopg://…`."""


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    url: str = "embedded"
    """`embedded` (a private Valkey on a socket in the state folder), `redis://…`, `redis+socket:///PATH`, `amqp://…`."""


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    max_queued: int = 20_000_000
    """Jobs of one queue that may wait; beyond it submission answers 429."""
    window_seconds: float = 2.0
    """How much work is kept ticketed ahead of the consumers of a queue."""
    max_failures: int = 3
    retry_base_seconds: float = 1.0
    retry_max_seconds: float = 300.0
    lease_seconds: float = 30.0
    max_preemptions: int = 3
    """A tolerant job that was preempted so often moves to the firm lane, where an on_demand pool serves its model."""
    firm_slack_seconds: float = 30.0
    """So does one whose latest safe start is nearer than this, where an on_demand consumer is ready to take it."""


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """What each tenant may use, unless `batchyard tenants limit` says otherwise of it. 0: no limit."""

    queued_jobs: int = 0
    """Jobs that wait, over all queues; beyond it submission answers 429."""
    stored_bytes: int = 0
    """Inputs and results that are kept, and payloads."""
    requests_per_second: float = 0.0
    """Calls of any kind, at each API process."""
    jobs_per_second: float = 0.0
    """Jobs submitted, at each API process."""


NO_LIMITS = LimitSettings()


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    keep_seconds: float = 7 * 24 * 3600.0
    """Finished jobs older than this are deleted."""
    keep_bytes: int = 50 * 1024**3
    """Beyond this many bytes the oldest finished jobs are deleted. Counted are the inputs and results of all jobs, and
    every payload that a job refers to, once; not those that no job refers to, which deleting jobs would not free."""
    payload_seconds: float = 24 * 3600.0
    """A payload that no job refers to, yet or any more, is deleted once its upload is this long ago."""
    tombstone_seconds: float = 30 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    url: str = "file"
    """Where payloads go: `file` (a folder in the state folder) or any fsspec URL."""


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    allowed_networks: tuple[str, ...] = ()
    """Networks beyond the public internet that webhooks may go to, each as ADDRESS/BITS. Plain http is for loopback
    alone, and only where "127.0.0.0/8" or "::1/128" stands here."""
    retry_seconds: tuple[float, ...] = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    """Between the attempts at a delivery; after the last of them it is dead. By default about three days in all."""
    timeout_seconds: float = 15.0
    """Of one attempt, from the look-up of the name to the end of the answer."""
    concurrency: int = 32
    """Attempts that one API process makes at the same time; a quarter of them at most at one endpoint."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    name: str
    runtime: str
    """One of RUNTIMES, or `package.module:Class`."""
    version: str = "1"
    source: str = ""
    """A folder, `package:DISTRIBUTION_PACKAGE/path`, or a hub id."""
    digest: str = ""
    """`sha256:…` of a local source, which is compared before it is loaded; "": whatever stands there is loaded."""
    lane: Lane = Lane.FIRM
    """The default for its jobs."""
    weight: float = 1.0
    """Share of the bare name's jobs among the versions of this model."""
    share: float = 1.0
    """Of a consumer's device while other models of it have work as well: its part against theirs."""
    dtype: Literal["float32", "bfloat16", "float16", "int8", "auto"] = "float32"
    """What it computes in, or keeps its weights in; `auto`: the fastest that stays close to float32, found out when it
    is loaded."""
    compile: Literal["off", "on", "auto"] = "off"
    """Whether its passes are compiled when it is loaded, which takes about a minute; `auto`: where that is faster."""
    batch_budget: int | None = None
    """Cost of one forward pass, padding included; None: learned."""
    max_run_seconds: float = 300.0
    p99_batch_seconds: float | None = None
    """How long 99 of 100 batches take at most; where known, a consumer in a cluster is given as long to end one."""
    memory_gib: float | None = None
    """What it asks of its hardware class; None: not known, and not checked."""
    gpu_memory_gib: float | None = None
    preload: bool = True
    """Whether a consumer loads it when it starts; else with its first work."""
    pinned: bool = False
    """Whether it stays in memory when others need the room."""
    cache_seconds: float | None = None
    """For how long a result serves other jobs that compute the same; None: each job is computed."""
    cache_across_tenants: bool = False
    """Whether those may be jobs of other tenants."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def qualified(self) -> str:
        return f"{self.name}@{self.version}"


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Other limits of a pool at certain hours: `[[pools.NAME.schedule]]`."""

    days: tuple[str, ...] = DAYS
    """On which it begins."""
    from_minute: int
    """Of the day, by the clocks of the time zone."""
    to_minute: int
    """Of the next day where it is not after `from_minute`."""
    timezone: str = "UTC"
    min: int | None = None
    """None: as the pool says."""
    max: int | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """What all pools together may cost, in dollars; None: no limit."""

    per_hour: float | None = None
    per_month: float | None = None


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    name: str
    models: tuple[str, ...]
    """Names or `name@version`; a bare name means all its versions."""
    capacity: Literal["on_demand", "spot"] = "on_demand"
    device: str = "auto"
    """What its consumers compute on, each on one: `cpu`, `mps`, `cuda` (every GPU of the machine, and of a GPU that is
    divided every MIG instance), `cuda:0,1` (these, by nvidia-smi's index among the visible ones or by UUID), or `auto`
    (the GPUs where there are any, else the CPU)."""
    consumers_per_device: int = 1
    """How many consumers take turns on a GPU; each one's models have that part of its memory."""
    memory_gib: float | None = None
    """What the models of one consumer may take together on its device; those with work take turns where they need more.
    None: nine tenths of a GPU, or of its share; on a CPU all that is there."""
    host_memory_gib: float | None = None
    """Of the machine's memory, for each consumer on a GPU: weights of evicted models, for their quick return. 0: none.
    None: as much as leaves a quarter of it free."""
    hardware: str = ""
    """A class of `[hardware.NAME]`, for Kubernetes; without one a GPU, or none where the device is "cpu"."""
    min: int = 0
    max: int = 1
    idle_seconds: float | None = None
    """A consumer above `min` leaves after this long without work; None: a minute, or as long as a start takes where
    that is longer."""
    drain_seconds: float = 20.0
    """Grace that a consumer has to finish what it holds."""
    cloud: Literal["auto", "none", "aws", "gcp", "azure"] = "auto"
    """Whose metadata service tells a consumer its zone, and a spot consumer that its machine is taken back; `auto`: as
    the machine's firmware says."""
    metadata_url: str = ""
    """Where that service answers; "": at the cloud's own address."""
    price_per_hour: float | None = None
    """Of one consumer, in dollars; None: not known, and its cost is shown as hours of consumers."""
    speed: float = 1.0
    """Of one consumer, as a multiple of that of the other pools which serve the same models."""
    zones: tuple[str, ...] = ()
    """Where its consumers may run, such as `us-east-1a`; a spot pool is spread over them."""
    schedule: tuple[ScheduleSettings, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HardwareSettings:
    """What one consumer has in a cluster. A class of machines, seen from the inside."""

    name: str
    cpus: float = 2.0
    memory_gib: float = 8.0
    resource: str = "nvidia.com/gpu"
    """What a consumer takes one of: a GPU, or a slice of one, such as `nvidia.com/mig-1g.10gb`; "": neither."""
    gpu_memory_gib: float | None = None
    """None: as the name of a MIG slice says, else not known."""
    accelerator: str = ""
    """The GPU's name in the node label of the preset, such as `nvidia-l4`; "": any."""
    node_labels: tuple[str, ...] = ()
    """Further labels of its nodes, each KEY=VALUE."""
    taints: tuple[str, ...] = ()
    """Taints of its nodes to tolerate, each KEY=VALUE:EFFECT or KEY:EFFECT."""


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """What `batchyard render` needs to know of a cluster. Nothing else reads it."""

    namespace: str = "batchyard"
    version: str = "1.35"
    """Of Kubernetes. Below 1.33 its autoscaler ignores changes within a tenth."""
    keda_version: str = "2.20"
    """Below 2.18 its ScaledObjects have no tolerance, below 2.17 no fallback to the replicas that are there."""
    preset: Literal["none", "karpenter", "eks", "gke", "aks"] = "none"
    """Whose labels and taints tell spot nodes and GPUs."""
    image: str = "batchyard-{role}:{version}"
    """Of each role (api, worker, scaler); `{version}` is that of the batchyard that renders."""
    trigger: Literal["metrics-api", "external-push", "prometheus"] = "metrics-api"
    """How KEDA hears of decisions."""
    prometheus_url: str = ""
    """Where KEDA asks, with the trigger `prometheus`."""
    secret: str = "batchyard"
    """The Secret with BATCHYARD_DATABASE__URL and BATCHYARD_BROKER__URL."""
    env_secrets: tuple[str, ...] = ()
    """Further Secrets whose entries become variables of the API and the consumers, such as credentials of a store."""
    volumes: tuple[str, ...] = ()
    """Persistent volume claims that the API and the consumers mount, each CLAIM:/PATH or CLAIM:/PATH:ro."""
    api_replicas: int = 2
    keda_namespace: str = "keda"
    """Where KEDA runs, which alone reaches the scaler with the trigger `external-push`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a process needs to know, validated."""

    state_dir: Path
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    queues: QueueSettings = QueueSettings()
    limits: LimitSettings = NO_LIMITS
    retention: RetentionSettings = RetentionSettings()
    storage: StorageSettings = StorageSettings()
    webhooks: WebhookSettings = WebhookSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    budget: BudgetSettings = BudgetSettings()
    hardware: tuple[HardwareSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    pools: tuple[PoolSettings, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    config_path: Path | None = None
    """The file it was read from; models written by the user are imported from its folder too."""
