"""Which cloud a consumer's machine is of, and the thread that hears what it tells."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from batchyard.settings import PoolSettings
from batchyard.telemetry import log_event
from batchyard_consumers.notices.clouds import CALL_SECONDS, Aws, Azure, Gcp, Metadata, Notice, OddAnswer

FIRMWARE = Path("/sys/class/dmi/id")
AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"
"""On every virtual machine of Azure, and on no other of the same vendor."""
KUBELET_SECONDS = 15.0
"""Of the 30 that Google gives, those in which the kubelet lets pods end."""
LONGEST_PAUSE_SECONDS = 20.0
"""Between tries of a service that fails: shorter than any notice."""

log = logging.getLogger(__name__)


def metadata_of(pool: PoolSettings, environ: Mapping[str, str], *, firmware: Path = FIRMWARE) -> Metadata | None:
    """The service that a consumer of this pool asks, as configured or as the machine's firmware says; None: none."""
    cloud = cloud_of_machine(firmware) if pool.cloud == "auto" else pool.cloud
    kind: type[Aws | Gcp | Azure]
    match cloud:
        case "aws":
            kind = Aws
        case "gcp":
            kind = Gcp
        case "azure":
            kind = Azure
        case _:
            return None
    client = httpx.Client(base_url=pool.metadata_url or kind.url, timeout=CALL_SECONDS, trust_env=False)
    if kind is Gcp and "KUBERNETES_SERVICE_HOST" in environ:
        return Gcp(client, notice_seconds=KUBELET_SECONDS)
    return kind(client)


def cloud_of_machine(firmware: Path) -> str:
    """`aws`, `gcp`, `azure` or `none`, without asking the network."""
    if _read(firmware / "sys_vendor") == "Amazon EC2":
        return "aws"
    if _read(firmware / "product_name") == "Google Compute Engine":
        return "gcp"
    return "azure" if _read(firmware / "chassis_asset_tag") == AZURE_CHASSIS else "none"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


class Watch:
    """Learns the zone and, where `hears_notices`, hears of notices; `run` is the body of its thread."""

    def __init__(
        self,
        metadata: Metadata,
        *,
        zone: str,
        hears_notices: bool,
        on_zone: Callable[[str], None],
        on_notice: Callable[[Notice], None],
        stopping: threading.Event,
    ) -> None:
        """`zone` is "" where it is not known yet. Warnings without a time are told once."""
        self._metadata = metadata
        self._zone = zone
        self._hears_notices = hears_notices
        self._on_zone = on_zone
        self._on_notice = on_notice
        self._stopping = stopping
        self._wake = threading.Event()
        self._failures = 0
        self._is_warned = False
        self._is_over = False

    def run(self) -> None:
        """Until the machine is taken back, or nothing is left to learn."""
        while not self.look() and not self._stopping.is_set():
            self._wake.wait(self._pause_seconds())
            self._wake.clear()

    def look_soon(self) -> None:
        """Something has happened that a notice may be behind, or `stopping` is set. From any thread."""
        self._wake.set()

    def look(self) -> bool:
        """Ask once. Returns whether nothing is left to learn; failures are logged at their beginning and their end."""
        faults = [fault for fault in (_fault_of(self._learn_zone), _fault_of(self._hear)) if fault is not None]
        if faults and not self._failures:
            kind = type(self._metadata).__name__.lower()
            log_event(log, "metadata_fails", level=logging.WARNING, cloud=kind, reason=repr(faults[0]))
        elif self._failures and not faults:
            log_event(log, "metadata_answers", failures=self._failures)
        self._failures = self._failures + 1 if faults else 0
        return self._is_over or not (faults or self._hears_notices)

    def _learn_zone(self) -> None:
        if not self._zone:
            self._zone = self._metadata.zone()
            self._on_zone(self._zone)

    def _hear(self) -> None:
        notice = self._metadata.look() if self._hears_notices else None
        if notice is None:
            return
        self._is_over = notice.in_seconds is not None
        if self._is_over or not self._is_warned:
            self._on_notice(notice)
        self._is_warned = True

    def _pause_seconds(self) -> float:
        return min(LONGEST_PAUSE_SECONDS, self._metadata.poll_seconds * 2.0 ** min(self._failures, 8))


def _fault_of(step: Callable[[], None]) -> Exception | None:
    try:
        step()
    except (httpx.HTTPError, OddAnswer) as error:
        return error
    return None
