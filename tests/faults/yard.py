"""The whole system of one run: servers, processes, and what tests need to know of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import sqlalchemy as sa

from batchyard.broker import queue_name
from batchyard.jobs import Lane
from batchyard.store import migrate
from batchyard.store.open import open_store
from tests.faults import recording, servers, triggers
from tests.faults.history import History
from tests.faults.load import MODEL
from tests.faults.members import Member, kept, variables
from tests.servers.processes import free_port

READY_SECONDS = 120.0
QUEUES = [queue_name(MODEL, "1", lane) for lane in Lane]
TENANTS = ("ants", "bees")

CONFIG = """
log_level = "info"
[database]
url = "{database}"
[broker]
url = "{broker}"
[queues]
lease_seconds = {lease_seconds}
retry_base_seconds = 0.1
retry_max_seconds = 0.5
[models.keyed]
runtime = "tests.faults.model:Keyed"
[pools.local]
models = ["keyed"]
device = "cpu"
max = 8
drain_seconds = 2
"""


class Combination(NamedTuple):
    """Which database and which broker."""

    database: str
    broker: str

    def __str__(self) -> str:
        return f"{self.database}+{self.broker}"


COMBINATIONS = [
    Combination(database, broker) for database in ("sqlite", "postgres") for broker in ("redis", "rabbitmq")
]
DATABASES: Mapping[str, Callable[[Path], AbstractContextManager[servers.Database]]] = {
    "sqlite": servers.sqlite,
    "postgres": servers.postgres,
}
_BROKERS: Mapping[str, Callable[[], AbstractContextManager[servers.Broker]]] = {
    "redis": servers.valkey,
    "rabbitmq": servers.rabbitmq,
}


class Yard:
    """A running system. Its database is read past the proxy."""

    def __init__(
        self,
        folder: Path,
        *,
        database: servers.Database,
        broker: servers.Broker,
        apis: Sequence[Member],
        consumers: Sequence[Member],
        history: History,
    ) -> None:
        self.folder = folder
        self.database = database
        self.broker = broker
        self.apis = apis
        self.consumers = consumers
        self.history = history
        self.lease_seconds = history.setting.lease_ms / 1000
        self._engine = triggers.engine(database.direct)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{api.port}" for api in self.apis]

    def make_keys(self) -> dict[str, str]:
        """Two tenants; returns name → API key."""
        keys: dict[str, str] = {}
        with httpx.Client(base_url=self.urls[0], timeout=30) as admin:
            for name in TENANTS:
                admin.post("/v1/tenants", json={"name": name}).raise_for_status()
                keys[name] = admin.post("/v1/keys", json={"name": "faults", "tenant": name}).json()["key"]
        return keys

    # --- looking ---

    def select(self, query: str, **values: Any) -> list[Any]:
        """Rows of the database."""
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(query), values))

    def owners(self, pid: int | None) -> tuple[int, ...]:
        """The registrations of a consumer's process."""
        present = "state IN ('starting', 'ready', 'draining')"
        return tuple(row.id for row in self.select(f"SELECT id FROM consumers WHERE pid = :pid AND {present}", pid=pid))

    def unfinished(self) -> int:
        [(count,)] = self.select("SELECT count(*) FROM jobs WHERE state < 3")
        return int(count)

    def is_ready(self) -> bool:
        """Every process serves."""
        pids = [member.pid for member in (*self.apis, *self.consumers)]
        ready = {row.pid for row in self.select("SELECT pid FROM consumers WHERE state = 'ready'")}
        return (
            None not in pids and all(member.pid in ready for member in self.consumers) and all(map(_serves, self.urls))
        )

    def leader(self) -> Member | None:
        """The API process whose dispatcher leads, as it says itself."""
        leads = (member for member, url in zip(self.apis, self.urls, strict=True) if metric(url, "leader"))
        return next(leads, None)

    def ticketed(self) -> int:
        """Ids of jobs that the API processes have put into tickets since they started."""
        return int(sum(metric(url, "ticketed_jobs_total") for url in self.urls))

    def claimed(self) -> int:
        [(count,)] = self.select("SELECT count(*) FROM faults_changes WHERE came = 0 AND went = 1")
        return int(count)

    def logs(self) -> str:
        """The ends of all members' logs, for a run that did not get anywhere."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    # --- the end ---

    def record(self) -> None:
        """Add to the history what the database knows, once nothing moves any more."""
        tenants = {row.id: row.name for row in self.select("SELECT id, name FROM tenants")}
        with self._engine.connect() as connection:
            self.history.add(triggers.read(connection))
            self.history.add(recording.rows(connection, tenants))
        store = open_store(self.database.direct, state_dir=self.folder)
        try:
            self.history.add(recording.sums(store, tenants))
        finally:
            store.close()


@contextmanager
def yard(
    folder: Path, combination: Combination, *, history: History, apis: int, consumers: int, mutant: str
) -> Iterator[Yard]:
    """Start everything, and wait until it serves. `mutant` names the change to the product's code, if any."""
    with ExitStack() as stack:
        database = stack.enter_context(DATABASES[combination.database](folder))
        broker = stack.enter_context(_BROKERS[combination.broker]())
        config = folder / "batchyard.toml"
        lease_seconds = history.setting.lease_ms / 1000
        config.write_text(CONFIG.format(database=database.url, broker=broker.url, lease_seconds=lease_seconds))
        migrate.upgrade(database.direct)
        triggers.install(database.direct)
        environment = mutated(variables(), mutant)
        producers = [_api(number, folder, environment, history) for number in range(1, apis + 1)]
        workers = [_consumer(number, folder, environment, history) for number in range(1, consumers + 1)]
        stack.enter_context(kept([*producers, *workers]))
        made = Yard(folder, database=database, broker=broker, apis=producers, consumers=workers, history=history)
        await_ready(made)
        yield made


def mutated(environment: Mapping[str, str], mutant: str) -> dict[str, str]:
    """With which Python changes the product's code as it is imported; see `mutated/sitecustomize.py`."""
    if not mutant:
        return dict(environment)
    changing = Path(__file__).with_name("mutated")
    return {**environment, "FAULTS_MUTANT": mutant, "PYTHONPATH": f"{changing}:{environment['PYTHONPATH']}"}


def await_ready(made: Yard) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while not made.is_ready():
        assert time.monotonic() < give_up, f"the system did not come up\n{made.logs()}"
        time.sleep(0.1)


def _api(number: int, folder: Path, environment: Mapping[str, str], history: History) -> Member:
    port = free_port()
    arguments = ("api", "--bind", f"127.0.0.1:{port}")
    return Member(f"api-{number}", *arguments, folder=folder, variables=environment, history=history, port=port)


def _consumer(number: int, folder: Path, environment: Mapping[str, str], history: History) -> Member:
    return Member(
        f"worker-{number}", "worker", "--pool", "local", folder=folder, variables=environment, history=history
    )


def _serves(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).is_success
    except httpx.TransportError:
        return False


def metric(url: str, name: str) -> float:
    """The sum of a metric over all labels; 0 from a process that does not answer."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=5).text
    except httpx.TransportError:
        return 0.0
    found = re.findall(rf"^batchyard_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))
