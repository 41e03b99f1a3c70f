"""Drives a Celery peer: publishes N jobs, fetches and compares every result, prints one JSON line."""

import importlib
import json
import sys
import time

module, jobs = sys.argv[1], int(sys.argv[2])
worker = importlib.import_module(module)
worker.echo.apply_async(({"text": "warm", "n": -1},)).get(timeout=60)
inputs = [{"text": f"{n:08d} " + "x" * 70, "n": n} for n in range(jobs)]
start = time.perf_counter()
with worker.app.producer_pool.acquire(block=True) as producer:
    handles = [worker.echo.apply_async((item,), producer=producer) for item in inputs]
submitted = time.perf_counter() - start
wrong = 0
pending = {handle.id: item for handle, item in zip(handles, inputs, strict=True)}
backend = worker.app.backend
# Straight MGETs of the results, which is faster than the library's own wait on each.
while pending:
    ids = list(pending)[:2000]
    values = backend.client.mget([backend.get_key_for_task(i) for i in ids])
    for job_id, value in zip(ids, values, strict=True):
        if value is not None:
            item = pending.pop(job_id)
            wrong += json.loads(value)["result"] != {"echo": item["text"], "n": item["n"]}
    if not any(values):
        time.sleep(0.02)
seconds = time.perf_counter() - start
cpu = time.process_time()
print(
    json.dumps(
        {"jobs": jobs, "seconds": seconds, "submit_seconds": submitted, "wrong": wrong, "client_cpu_seconds": cpu}
    )
)
