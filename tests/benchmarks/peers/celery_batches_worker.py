"""The peer "celery-batches": one message a job, executed in batches, results in Redis."""

import os

from celery import Celery
from celery_batches import Batches

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=1000,
    worker_hijack_root_logger=False,
)


@app.task(name="echo", base=Batches, flush_every=500, flush_interval=0.1)
def echo(requests: list) -> None:
    for request in requests:
        item = request.args[0]
        app.backend.mark_as_done(request.id, {"echo": item["text"], "n": item["n"]}, request=request)
