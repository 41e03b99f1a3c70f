"""KEDA's external scaler, asked over gRPC by whoever compiles the published proto file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from batchyard.errors import Unavailable
from batchyard.store.base import PoolDecision
from batchyard.testing import memory_store
from batchyard_scaler import external
from batchyard_scaler.command import scaler
from batchyard_scaler.external import externalscaler_pb2 as messages
from batchyard_scaler.external.decisions import Decisions
from batchyard_scaler.external.server import serving

FOLDER = Path(external.__file__).parent
SECONDS = 10.0


class Yard:
    """A store with decisions about pools, and the calls of KEDA over a real connection."""

    def __init__(self) -> None:
        self.store = memory_store()

    def decide(self, replicas: int, *, age_seconds: float = 0.0) -> None:
        self.store.report_decision(decision(replicas, at_ms=self.store.now_ms() - int(age_seconds * 1000)))

    def connect(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def call(self, method: str, request: Any, answer: Any) -> Any:
        stub = self.channel.unary_unary(
            f"/externalscaler.ExternalScaler/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return stub(request, timeout=SECONDS)

    def is_active(self, pool: str = "p") -> bool:
        return bool(self.call("IsActive", ref(pool), messages.IsActiveResponse).result)

    def metric(self, pool: str = "p") -> int:
        request = messages.GetMetricsRequest(scaledObjectRef=ref(pool), metricName="anything")
        [value] = self.call("GetMetrics", request, messages.GetMetricsResponse).metricValues
        assert (value.metricName, value.metricValueFloat) == ("anything", 0.0)
        return int(value.metricValue)

    def stream(self, pool: str = "p") -> Any:
        stub = self.channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamIsActive",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.IsActiveResponse.FromString,
        )
        return stub(ref(pool), timeout=SECONDS)


def ref(pool: str) -> messages.ScaledObjectRef:
    metadata = {"scalerAddress": "x:9090", **({"pool": pool} if pool else {})}
    return messages.ScaledObjectRef(name="o", namespace="n", scalerMetadata=metadata)


def decision(replicas: int, *, at_ms: int) -> PoolDecision:
    return PoolDecision(
        pool="p", replicas=replicas, live=0, reason="r", backlog_jobs=0, backlog_seconds=0.0, decided_at_ms=at_ms
    )


@pytest.fixture
def yard() -> Iterator[Yard]:
    yard = Yard()
    with serving(yard.store, pools=["p", "q"], bind="127.0.0.1:0") as port:
        yard.connect(port)
        yield yard
        yard.channel.close()
    yard.store.close()


def refused(call: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def refusal(call: Any) -> str:
    """Why the call is refused; "" where it is answered."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.details())
    return ""


def until(condition: Any) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_the_replicas_decided_are_told_with_a_target_of_one(yard: Yard) -> None:
    yard.decide(7)
    until(lambda: not refusal(yard.metric) and yard.metric() == 7)
    [spec] = yard.call("GetMetricSpec", ref("p"), messages.GetMetricSpecResponse).metricSpecs
    assert (spec.targetSize, spec.targetSizeFloat) == (1, 0.0)
    assert yard.is_active()
    yard.decide(0)
    until(lambda: yard.metric() == 0)
    assert not yard.is_active()


def test_a_stream_hears_of_every_change(yard: Yard) -> None:
    yard.decide(0)
    stream = yard.stream()
    said = iter(stream)
    heard = [next(said).result]
    for replicas in (1, 2, 0):
        yard.decide(replicas)
        if replicas != 2:
            heard.append(next(said).result)
    stream.cancel()
    assert heard == [False, True, False]


def test_without_a_fresh_decision_only_the_target_is_told(yard: Yard) -> None:
    code, details = refused(yard.is_active)
    assert (code, details) == (
        grpc.StatusCode.UNAVAILABLE,
        "nothing was decided about the pool p yet: no scaler has looked at it",
    )
    yard.decide(3, age_seconds=40.0)
    until(lambda: not refusal(yard.metric) and yard.metric() == 3)
    yard.decide(3, age_seconds=61.0)
    until(lambda: "61 s old" in refusal(yard.metric))
    assert refused(yard.is_active)[0] == grpc.StatusCode.UNAVAILABLE
    assert len(yard.call("GetMetricSpec", ref("p"), messages.GetMetricSpecResponse).metricSpecs) == 1


@pytest.mark.parametrize("pool", ["elsewhere", ""])
def test_an_unknown_pool_is_refused_by_name(yard: Yard, pool: str) -> None:
    for call in (
        lambda: yard.is_active(pool),
        lambda: yard.metric(pool),
        lambda: yard.call("GetMetricSpec", ref(pool), messages.GetMetricSpecResponse),
        lambda: next(iter(yard.stream(pool))),
    ):
        code, details = refused(call)
        assert code == grpc.StatusCode.NOT_FOUND
        assert details == f'the trigger\'s metadata names the pool "{pool}"; there are: p, q'


def test_a_database_that_is_away_lets_the_last_decision_age() -> None:
    now = [1000.0]
    store = memory_store(clock=lambda: int(now[0] * 1000))
    store.report_decision(decision(4, at_ms=store.now_ms()))
    decisions = Decisions(store, pools=["p"], clock=lambda: now[0] - 900.0)
    asyncio.run(decisions.look())

    def away() -> list[PoolDecision]:
        raise Unavailable("away")

    store.decisions = away  # type: ignore[method-assign]
    now[0] += 60.0
    asyncio.run(decisions.look())
    assert decisions.replicas("p") == 4
    now[0] += 1.0
    with pytest.raises(Unavailable, match="61 s old"):
        decisions.replicas("p")
    store.close()


def test_every_replica_answers_from_the_same_decisions(yard: Yard) -> None:
    yard.decide(5)
    until(lambda: not refusal(yard.metric) and yard.metric() == 5)
    with serving(yard.store, pools=["p"], bind="127.0.0.1:0") as port:
        first, yard.channel = yard.channel, grpc.insecure_channel(f"127.0.0.1:{port}")
        until(lambda: not refusal(yard.metric) and yard.metric() == 5)
        yard.channel.close()
        yard.channel = first


@pytest.mark.parametrize("address", ["9090", "0.0.0.0:99999", "::1:9090x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    refused = CliRunner().invoke(scaler, ["--grpc-bind", address], obj=None)
    assert refused.exit_code == 2
    assert f'"{address}" is not HOST:PORT, such as "127.0.0.1:8080"' in " ".join(refused.output.split())


def test_probes_find_it_healthy(yard: Yard) -> None:
    check = yard.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=SECONDS) == b"\x08\x01"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_ends_the_serving_so_that_probes_fail(yard: Yard) -> None:
    def broken() -> list[PoolDecision]:
        raise ZeroDivisionError

    yard.store.decisions = broken  # type: ignore[method-assign]
    check = yard.channel.unary_unary("/grpc.health.v1.Health/Check")
    until(lambda: bool(refusal(lambda: check(b"", timeout=SECONDS))))


def test_a_port_that_is_taken_is_named(yard: Yard) -> None:
    with serving(yard.store, pools=["p"], bind="127.0.0.1:0") as port:
        bind = f"127.0.0.1:{port}"
        with pytest.raises(Unavailable, match=bind), serving(yard.store, pools=["p"], bind=bind):
            raise AssertionError("served twice")


def test_the_committed_code_is_what_the_proto_file_makes(tmp_path: Path) -> None:
    arguments = [f"-I{FOLDER}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "externalscaler.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, timeout=60)
    for made in ("externalscaler_pb2.py", "externalscaler_pb2.pyi"):
        assert (tmp_path / made).read_text() == (FOLDER / made).read_text(), f"{made} is old: run `make proto`"
