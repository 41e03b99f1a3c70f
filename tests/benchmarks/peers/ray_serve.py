"""The peer "Ray Serve async inference": a task consumer over Redis. Starts Ray, measures, prints one JSON line."""

import json
import os
import sys
import time

import ray
from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

url, jobs = os.environ["PEER_BROKER"], int(sys.argv[1])
config = TaskProcessorConfig(
    queue_name="peer",
    adapter="ray.serve.task_processor.CeleryTaskProcessorAdapter",
    adapter_config=CeleryAdapterConfig(broker_url=url, backend_url=url),
    max_retries=1,
)


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
@task_consumer(task_processor_config=config)
class Echo:
    @task_handler(name="echo")
    def echo(self, item):
        return {"echo": item["text"], "n": item["n"]}


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
serve.run(Echo.bind())
adapter = instantiate_adapter_from_config(config)


def ended(task_id: str) -> object | None:
    status = adapter.get_task_status_sync(task_id)
    return status.result if status.status == "SUCCESS" else None


warm = adapter.enqueue_task_sync("echo", args=[{"text": "warm", "n": -1}]).id
deadline = time.monotonic() + 120
while ended(warm) is None:
    if time.monotonic() > deadline:
        raise SystemExit("the task consumer did not answer within 120 s")
    time.sleep(0.05)
inputs = [{"text": f"{n:08d} " + "x" * 70, "n": n} for n in range(jobs)]
start = time.perf_counter()
pending = [(adapter.enqueue_task_sync("echo", args=[item]).id, item) for item in inputs]
submitted = time.perf_counter() - start
wrong = 0
while pending:
    rest = []
    for position, (task_id, item) in enumerate(pending):
        result = ended(task_id)
        if result is None:
            rest = pending[position:]
            time.sleep(0.01)
            break
        wrong += result != {"echo": item["text"], "n": item["n"]}
    pending = rest
seconds = time.perf_counter() - start
print(json.dumps({"jobs": jobs, "seconds": seconds, "submit_seconds": submitted, "wrong": wrong}), flush=True)
serve.shutdown()
ray.shutdown()
