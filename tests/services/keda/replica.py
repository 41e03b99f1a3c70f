"""A replica as its image starts it, but for the API of its cluster: in the clear, and with shortened times."""

import os
import sys
from pathlib import Path

import httpx

from batchyard_consumers import pod, worker
from tests.services.keda import FACTOR


def _own_pod(environ: object) -> pod.Pod:
    client = httpx.Client(base_url=os.environ["CLUSTER_URL"], timeout=pod.CALL_SECONDS, trust_env=False)
    token = Path(os.environ["CLUSTER_TOKEN"])
    return pod.Pod(client, namespace=os.environ["POD_NAMESPACE"], name=os.environ["POD_NAME"], token=token)


if __name__ == "__main__":
    worker.own_pod = _own_pod  # type: ignore[assignment,attr-defined]
    pod.IDLE_SECONDS /= FACTOR
    from batchyard.cli import main

    sys.exit(main())
