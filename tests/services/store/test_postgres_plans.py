"""The plans of the hot statements, whatever Postgres knows of the tables: nothing by statistics, or something wrong."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from batchyard.store.postgres import PostgresStore
from tests.services.store.yard import TENANT, Yard, naming, succeeded, upload

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)
BIG_TABLES = {"jobs", "job_inputs", "job_results", "idempotency", "payloads", "job_payloads", "job_webhooks"}


def use_everything(yard: Yard, count: int) -> None:
    """Every hot statement once."""
    bulk = yard.bulk()
    ids = yard.submit(count, bulk_id=bulk.id, idempotency_key="k", labels=["a"])
    yard.submit(1, bulk_id=bulk.id, idempotency_key="k", idempotency_digest=b"")
    loose = yard.submit(count)
    yard.submit(2, payloads=naming([upload(yard.store)], []))
    yard.submit(1, bulk_id=bulk.id, payloads=naming([upload(yard.store)]))
    yard.store.submit([yard.submission(1, payloads=naming([4711]))])
    yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0)
    yard.store.position(ids[-1], limit=10)
    yard.store.oldest_queued_ms()
    yard.store.stragglers(yard.queue, below={(1, 5): ids[-1]}, limit=10)
    jobs = yard.claim([*ids, *loose])
    yard.store.finish([succeeded(jobs[0])], owner=1)
    yard.fail_for_now(yard.submit(1))
    yard.finish([succeeded(job) for job in jobs])
    yard.finish([succeeded(job) for job in yard.claim(yard.submit(2))])
    yard.number_flushes()
    yard.store.bulk_results(bulk.id, after_seq=0, limit=10)
    yard.store.create_webhook(tenant_id=TENANT, url="https://example.com/", events=["job.failed"], description="")
    yard.run(yard.submit(count, webhook="https://example.com/named"))


def plans(store: PostgresStore) -> Iterator[tuple[str, list[str]]]:
    """The statements that the hot connection has prepared, with their generic plans."""
    with store._hot.connection() as connection:
        cursor = connection.cursor()
        prepared: list[Any] = cursor.execute("SELECT name, statement FROM pg_prepared_statements").fetchall()
        for name, statement in prepared:
            parameters = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", statement))))
            explained = f"EXPLAIN EXECUTE {name}" + (f" ({parameters})" if parameters else "")
            rows: list[Any] = cursor.execute(explained.encode()).fetchall()
            yield statement, [line for (line,) in rows]


def check_plans(store: PostgresStore) -> int:
    checked = 0
    for statement, plan in plans(store):
        shown = "\n".join([statement, *plan])
        for line in plan:
            scanned = re.search(r"(Seq Scan|Bitmap \w+ Scan) on (\w+)", line)
            assert scanned is None or scanned[2] not in BIG_TABLES, shown
            # A nested loop over whatever was asked for, each time by its key.
            used = re.search(r"Index (?:Only )?Scan (?:Backward )?using (\w+) on (\w+)", line)
            if used and used[2] in BIG_TABLES:
                assert used[1].endswith("_pkey") or used[1] == "jobs_head", shown
            assert not re.search(r"Hash Cond: .*\b(j|jobs)\.id\b|Merge Cond", line), shown
        checked += 1
    return checked


@pytest.mark.parametrize("analysed", [None, "empty", "queued", "terminal"])
def test_hot_statements_go_by_primary_keys(yard: Yard, analysed: str | None) -> None:
    """`analysed`: when, if ever, statistics were gathered, from the point of view of the statements planned at last."""
    store = yard.store
    assert isinstance(store, PostgresStore)
    if analysed == "empty":
        _analyse(store)
    elif analysed == "queued":
        yard.submit(3000)
        _analyse(store)
    elif analysed == "terminal":
        yard.run(yard.submit(3000))
        _analyse(store)
    use_everything(yard, 200)
    assert check_plans(store) > 10


def _analyse(store: PostgresStore) -> None:
    with store._hot.connection() as connection:
        connection.execute("ANALYZE")
