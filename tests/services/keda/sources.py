"""KEDA's two triggers, as it asks them: over HTTP by a path into JSON, and over gRPC by the published proto file.

Written from KEDA's contract alone: nothing of batchyard is imported here.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx

CALL_SECONDS = 3.0
"""KEDA's default for one call."""


class TriggerFailed(Exception):
    """The trigger gave no number."""


class Source(Protocol):
    def target(self) -> float:
        """What one replica accounts for; TriggerFailed where even that is not to be had."""

    def look(self) -> tuple[float, bool]:
        """The metric, and whether it keeps the pool from zero; TriggerFailed."""


class MetricsApi:
    """The trigger `metrics-api`."""

    def __init__(self, metadata: Mapping[str, str], *, token: str, address: Callable[[str], str]) -> None:
        """`address` stands in for the cluster's names."""
        assert (metadata["format"], metadata["authMode"]) == ("json", "bearer")
        self._metadata = metadata
        url = httpx.URL(metadata["url"])
        self._client = httpx.Client(
            base_url=f"{url.scheme}://{address(url.netloc.decode())}",
            headers={"authorization": f"Bearer {token}"},
            timeout=CALL_SECONDS,
        )
        self._path = url.raw_path.decode()

    def target(self) -> float:
        return float(self._metadata["targetValue"])

    def look(self) -> tuple[float, bool]:
        try:
            answer = self._client.get(self._path).raise_for_status()
            found: Any = answer.json()
            for step in self._metadata["valueLocation"].split("."):
                found = found[step]
            value = float(found)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise TriggerFailed(str(error)) from error
        return value, value > float(self._metadata["activationTargetValue"])

    def close(self) -> None:
        self._client.close()


class ExternalPush:
    """The trigger `external-push`; the messages are compiled from the proto file, as any client would."""

    def __init__(
        self, metadata: Mapping[str, str], *, proto: Path, folder: Path, address: Callable[[str], str]
    ) -> None:
        folder.mkdir()
        arguments = [f"-I{proto.parent}", f"--python_out={folder}", proto.name]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, timeout=60)
        sys.path.insert(0, str(folder))
        try:
            self._messages: Any = importlib.import_module(f"{proto.stem}_pb2")
        finally:
            sys.path.remove(str(folder))
        self._ref = self._messages.ScaledObjectRef(name="o", namespace="n", scalerMetadata=dict(metadata))
        # KEDA comes back after 2 to 60 seconds; a test sooner.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self._channel = grpc.insecure_channel(address(metadata["scalerAddress"]), options=options)

    def target(self) -> float:
        [spec] = self._call("GetMetricSpec", self._ref, "GetMetricSpecResponse").metricSpecs
        return float(spec.targetSizeFloat if spec.targetSizeFloat > 0 else spec.targetSize)

    def look(self) -> tuple[float, bool]:
        request = self._messages.GetMetricsRequest(scaledObjectRef=self._ref, metricName="any")
        [value] = self._call("GetMetrics", request, "GetMetricsResponse").metricValues
        is_active = self._call("IsActive", self._ref, "IsActiveResponse").result
        return float(value.metricValueFloat if value.metricValueFloat > 0 else value.metricValue), bool(is_active)

    def activations(self) -> Iterator[bool]:
        """What the stream says, until it breaks."""
        stream = self._channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamIsActive",
            request_serializer=_serialized,
            response_deserializer=self._messages.IsActiveResponse.FromString,
        )
        try:
            for answer in stream(self._ref):
                yield bool(answer.result)
        except (grpc.RpcError, ValueError):  # broken off; or closed with the channel
            return

    def _call(self, method: str, request: Any, answer: str) -> Any:
        stub = self._channel.unary_unary(
            f"/externalscaler.ExternalScaler/{method}",
            request_serializer=_serialized,
            response_deserializer=getattr(self._messages, answer).FromString,
        )
        try:
            return stub(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise TriggerFailed(str(error)) from error

    def close(self) -> None:
        self._channel.close()


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())
