"""The peer "Celery": one task a job, results in Redis. Runs inside the peers' environment."""

import os

from celery import Celery

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=64,
    task_ignore_result=False,
    worker_hijack_root_logger=False,
)


@app.task(name="echo")
def echo(item: dict) -> dict:
    return {"echo": item["text"], "n": item["n"]}
