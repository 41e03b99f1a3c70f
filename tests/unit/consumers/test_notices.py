"""Notices of three clouds, from a stand-in that serves their documented paths over HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from batchyard.broker import Broker
from batchyard.jobs import Lane, Submission
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard.testing import memory_store
from batchyard_consumers.consumer import Consumer
from batchyard_consumers.notices import clouds, watching
from batchyard_consumers.notices.clouds import Aws, Azure, Gcp, Metadata, Notice, OddAnswer
from batchyard_consumers.notices.watching import LONGEST_PAUSE_SECONDS, Watch, cloud_of_machine, metadata_of
from tests.servers.metadata import MetadataService, metadata_service
from tests.unit.consumers.line import until
from tests.unit.consumers.test_pod import Source

Cloud = Literal["aws", "gcp", "azure"]
CLOUDS: tuple[Cloud, ...] = ("aws", "gcp", "azure")


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A consumer keeps its connection for as long as its process lives."""
    with ExitStack() as clients:

        class Kept(httpx.Client):
            def __init__(self, **arguments: Any) -> None:
                super().__init__(**arguments)
                clients.callback(self.close)

        monkeypatch.setattr(httpx, "Client", Kept)
        yield


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with metadata_service() as service:
        yield service


def asked(service: MetadataService, cloud: Cloud) -> Metadata:
    made = metadata_of(PoolSettings(name="p", models=("m",), cloud=cloud, metadata_url=service.url), {})
    assert made is not None
    return made


class Heard:
    """A watch, and what it told."""

    def __init__(self, metadata: Metadata, *, zone: str = "", hears_notices: bool = True) -> None:
        self.zones: list[str] = []
        self.notices: list[Notice] = []
        self.stopping = threading.Event()
        self.watch = Watch(
            metadata,
            zone=zone,
            hears_notices=hears_notices,
            on_zone=self.zones.append,
            on_notice=self.notices.append,
            stopping=self.stopping,
        )


@pytest.mark.parametrize(
    ("cloud", "zone"), [("aws", "us-east-1c"), ("gcp", "europe-west4-b"), ("azure", "westeurope-2")]
)
def test_without_a_notice_the_zone_alone_is_told(service: MetadataService, cloud: Cloud, zone: str) -> None:
    heard = Heard(asked(service, cloud))
    assert not heard.watch.look()
    assert (heard.zones, heard.notices) == ([zone], [])


def test_aws_tells_when_by_its_own_clock(service: MetadataService) -> None:
    metadata = asked(service, "aws")
    service.interrupt(in_seconds=120, action="stop")
    notice = metadata.look()
    assert notice is not None
    assert notice.reason == "AWS will stop this spot instance"
    assert notice.in_seconds is not None
    assert 117 <= notice.in_seconds <= 121


def test_a_token_that_has_run_out_is_replaced(service: MetadataService) -> None:
    metadata = asked(service, "aws")
    assert metadata.look() is None
    service.tokens.clear()
    assert metadata.look() is None
    assert len(service.tokens) == 1


def test_a_recommendation_is_a_warning_that_is_told_once(service: MetadataService) -> None:
    service.recommend_rebalance()
    heard = Heard(asked(service, "aws"))
    assert not heard.watch.look()
    assert not heard.watch.look()
    assert [notice.in_seconds for notice in heard.notices] == [None]
    service.interrupt(in_seconds=60)
    assert heard.watch.look()
    assert len(heard.notices) == 2


def test_google_is_waited_for_and_answers_at_once(service: MetadataService) -> None:
    metadata = asked(service, "gcp")
    assert metadata.look() is None
    found: list[Notice | None] = []
    waiting = threading.Thread(target=lambda: found.append(metadata.look()))
    waiting.start()
    service.preempt()
    waiting.join(10)
    assert found == [Notice(reason="Google Cloud preempts this instance", in_seconds=30.0)]
    assert [path for path in service.paths if "wait_for_change=true" in path]


def test_a_change_while_nobody_asked_google_is_heard_of(service: MetadataService) -> None:
    metadata = asked(service, "gcp")
    assert metadata.look() is None
    service.preempt()
    assert metadata.look() is not None


def test_in_a_pod_the_kubelet_leaves_half_of_googles_time(service: MetadataService) -> None:
    service.preempt()
    pool = PoolSettings(name="p", models=("m",), cloud="gcp", metadata_url=service.url)
    metadata = metadata_of(pool, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert metadata is not None
    notice = metadata.look()
    assert notice is not None
    assert notice.in_seconds == 15.0


def test_azure_tells_of_neighbours_and_of_other_events_too(service: MetadataService) -> None:
    metadata = asked(service, "azure")
    service.evict(in_seconds=40, machine="vm-8")
    service.evict(in_seconds=40, kind="Freeze")
    assert metadata.look() is None
    service.evict(in_seconds=45)
    notice = metadata.look()
    assert notice is not None
    assert notice.in_seconds is not None
    assert 43 <= notice.in_seconds <= 46


def test_what_azure_has_begun_leaves_no_time(service: MetadataService) -> None:
    service.evict(in_seconds=None)
    assert asked(service, "azure").look() == Notice(reason="Azure evicts this spot machine", in_seconds=0.0)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_service_that_errs_does_no_harm_and_is_heard_again(
    service: MetadataService, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(asked(service, cloud))
    for status, garbage in ((503, None), (403, None), (200, b'{"unheard": "of"')):
        service.status, service.garbage = status, garbage
        assert not heard.watch.look()
    assert caplog.text.count("metadata_fails") == 1
    assert heard.notices == []
    service.status, service.garbage = 200, None
    service.interrupt(in_seconds=100)
    service.preempt()
    service.evict(in_seconds=100)
    assert heard.watch.look()
    assert len(heard.notices) == 1


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_slow_service_is_given_up_and_asked_again(
    service: MetadataService, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (clouds, watching):
        monkeypatch.setattr(module, "CALL_SECONDS", 0.1)
    monkeypatch.setattr(Azure, "first_answer_seconds", 0.1)
    metadata = asked(service, cloud)
    service.delay.clear()
    with pytest.raises(httpx.TimeoutException):
        metadata.look()
    service.delay.set()
    assert metadata.look() is None


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_absent_service_is_asked_now_and_then(cloud: Cloud) -> None:
    pool = PoolSettings(name="p", models=("m",), cloud=cloud, metadata_url="http://127.0.0.1:9")
    metadata = metadata_of(pool, {})
    assert metadata is not None
    heard = Heard(metadata)
    pauses = []
    for _ in range(7):
        assert not heard.watch.look()
        pauses.append(heard.watch._pause_seconds())
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    running = threading.Thread(target=heard.watch.run)
    running.start()
    heard.stopping.set()
    heard.watch.look_soon()
    running.join(10)
    assert not running.is_alive()


def test_a_zone_that_cannot_be_had_keeps_no_notice_back(service: MetadataService) -> None:
    service.interrupt(in_seconds=90)

    class Zoneless(Aws):
        def zone(self) -> str:
            raise OddAnswer("no zone")

    heard = Heard(Zoneless(httpx.Client(base_url=service.url)))
    assert heard.watch.look()
    assert len(heard.notices) == 1


def test_who_is_not_on_spot_asks_for_the_zone_alone(service: MetadataService) -> None:
    service.interrupt(in_seconds=90)
    heard = Heard(asked(service, "aws"), hears_notices=False)
    heard.watch.run()
    assert (heard.zones, heard.notices) == (["us-east-1c"], [])
    known = Heard(asked(service, "aws"), zone="known", hears_notices=False)
    known.watch.run()
    assert known.zones == []


class Standing:
    """A service that is asked rarely, and has a notice from some moment on."""

    poll_seconds = 3600.0

    def __init__(self) -> None:
        self.notice: Notice | None = None
        self.asked = threading.Event()

    def zone(self) -> str:
        return "z-1"

    def look(self) -> Notice | None:
        self.asked.set()
        return self.notice


def test_a_signal_that_comes_before_its_notice_is_known_for_what_it_is(tmp_path: Path) -> None:
    model = ModelSettings(name="m", runtime="batchyard_consumers.samples:Moody")
    pool = PoolSettings(name="p", models=("m",), device="cpu", capacity="spot", drain_seconds=60)
    settings = Settings(state_dir=tmp_path, models=(model,), pools=(pool,))
    store, metadata, ended = memory_store(), Standing(), threading.Event()
    close, store.close = store.close, lambda: None  # type: ignore[method-assign]
    consumer = Consumer(
        settings,
        pool,
        store=store,
        broker=Broker("memory://"),
        source=Source(),
        on_end=lambda code: ended.set(),
        metadata=metadata,
    )
    consumer.start()
    try:
        [version] = store.models()
        slow = json.dumps({"do": "sleep", "value": 1.0}).encode()
        store.submit([Submission(tenant_id=1, queue_id=version.queue_ids[Lane.TOLERANT], inputs=[slow], costs=[1])])
        until(lambda: bool(consumer.pipeline.running))
        assert metadata.asked.wait(10)
        metadata.notice = Notice(reason="taken back", in_seconds=30.0)
    finally:
        consumer.drain(reason="the node is emptied")
        assert ended.wait(60)
    (info,) = store.consumers()
    assert (info.state, info.zone) == ("gone", "z-1")
    assert info.preempted_at_ms is not None
    close()


FIRMWARE = {
    "aws": {"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"},
    "gcp": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
    "none": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "3286-77", "product_name": "A laptop"},
}


@pytest.mark.parametrize(("cloud", "files"), FIRMWARE.items())
def test_a_machine_tells_its_cloud(tmp_path: Path, cloud: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert cloud_of_machine(tmp_path) == cloud
    found = metadata_of(PoolSettings(name="p", models=("m",)), {}, firmware=tmp_path)
    assert type(found) is {"aws": Aws, "gcp": Gcp, "azure": Azure}.get(cloud, type(None))
    assert metadata_of(PoolSettings(name="p", models=("m",), cloud="none"), {}, firmware=tmp_path) is None


def test_where_there_is_no_firmware_there_is_no_cloud(tmp_path: Path) -> None:
    assert cloud_of_machine(tmp_path / "nowhere") == "none"
