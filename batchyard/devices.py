"""The GPUs of this machine, and which consumer has which. Never imports torch.

`nvidia-smi`, which comes with NVIDIA's driver, lists the GPUs and the MIG instances that one is divided into; of those
CUDA_VISIBLE_DEVICES leaves what it leaves to any CUDA program. A consumer is started with that variable naming its one
device, by UUID, so that nothing that it loads can reach another.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from batchyard.logs import log_event
from batchyard.settings import PoolSettings

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASK_SECONDS = 30.0
"""For nvidia-smi: without a process that keeps the driver loaded, it loads the driver first."""

_GPU = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")

log = logging.getLogger(__name__)


def listed(text: str) -> list[list[str]]:
    """What `nvidia-smi -L` says: by GPU the devices that programs may use, which are its MIG instances where it has
    any, else itself."""
    gpus: list[list[str]] = []
    for line in text.splitlines():
        if (gpu := _GPU.match(line)) is not None:
            gpus.append([gpu[1]])
        elif gpus and (instance := _INSTANCE.match(line)) is not None:
            gpus[-1] = [device for device in gpus[-1] if device.startswith("MIG-")] + [instance[1]]
    return gpus


def left_visible(gpus: Sequence[Sequence[str]] | None, chosen: str | None) -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES, where it is set, leaves of those listed; None where nothing is known.

    As in CUDA, an index stands for a GPU (of a divided one for its first instance), a UUID may be cut short, and
    what follows an entry that is neither does not count. Indices are nvidia-smi's.
    """
    if chosen is None:
        return None if gpus is None else [device for gpu in gpus for device in gpu]
    found: list[str] = []
    for entry in [entry.strip() for entry in chosen.split(",")]:
        device = entry if gpus is None and re.fullmatch(r"\d+|(GPU|MIG)-.+", entry) else _named(entry, gpus or ())
        if device is None:
            break
        found.append(device)
    return found


def _named(entry: str, gpus: Sequence[Sequence[str]]) -> str | None:
    if entry.isdecimal():
        return gpus[int(entry)][0] if int(entry) < len(gpus) else None
    fitting = [device for gpu in gpus for device in gpu if entry[4:] and device.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def chosen_by(wanted: str, visible: Sequence[str] | None) -> list[str] | None:
    """The devices that a pool's `device` means; None where its consumers are bound to none, as on a CPU.

    `visible` as `left_visible` has it. Those that are named and not there are left out.
    """
    kind, _, names = wanted.partition(":")
    if kind not in {"auto", "cuda"} or (kind == "auto" and not visible):
        return None
    if visible is None:
        # The driver's own tool is missing: what is named is believed, and one device is sure to be meant.
        return names.split(",") if names else ["0"]
    if not names:
        return list(visible)
    by_index = [[device] for device in visible]
    devices = [device for name in names.split(",") if (device := _named(name, by_index)) is not None]
    return list(dict.fromkeys(devices))


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one consumer has of one device; without a device it is bound to none."""

    device: str = ""
    share: Fraction = Fraction(1)
    torch_device: str = ""
    """How the consumer calls it."""

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of the consumer's process."""
        return {VISIBLE: self.device} if self.device else {}

    @property
    def arguments(self) -> list[str]:
        """For `batchyard worker`, which then is one consumer."""
        return ["--device", self.torch_device] if self.device else []


class Devices:
    """Gives each consumer of this machine its place. Owned by one thread.

    Consumers of several pools may be on one device only where their shares of it add up to no more than the whole.
    """

    def __init__(self, visible: Sequence[str] | None) -> None:
        """`visible` as `left_visible` has it."""
        self._visible = visible
        self._taken: dict[str, Fraction] = {}

    def take(self, pool: PoolSettings) -> Place | None:
        """A place for one more consumer, on the emptiest device; None where there is none."""
        devices = chosen_by(pool.device, self._visible)
        if devices is None:
            return Place()
        share = Fraction(1, pool.consumers_per_device)
        fitting = [device for device in devices if self._used(device) + share <= 1]
        if not fitting:
            return None
        device = min(fitting, key=self._used)
        self._taken[device] = self._used(device) + share
        return Place(device=device, share=share, torch_device="auto" if pool.device == "auto" else "cuda:0")

    def give_back(self, place: Place) -> None:
        """The consumer that had it has ended."""
        if place.device:
            self._taken[place.device] -= place.share

    def free(self, pool: PoolSettings) -> int | None:
        """How many more consumers of the pool there is a place for; None: any number."""
        devices = chosen_by(pool.device, self._visible)
        if devices is None:
            return None
        return sum(int((1 - self._used(device)) * pool.consumers_per_device) for device in devices)

    def _used(self, device: str) -> Fraction:
        return self._taken.get(device, Fraction(0))


def devices_for(pools: Sequence[PoolSettings], environ: Mapping[str, str] = os.environ) -> Devices:
    """The devices of this machine, as far as any of these pools could want one."""
    if not any(pool.device.startswith(("auto", "cuda")) for pool in pools):
        return Devices(None)
    visible = left_visible(_ask(), environ.get(VISIBLE))
    for pool in pools:
        found, named = chosen_by(pool.device, visible), pool.device.partition(":")[2]
        if found is not None and len(found) < named.count(",") + 1:
            log_event(
                log,
                "devices_missing",
                level=logging.WARNING,
                pool=pool.name,
                wanted=pool.device,
                visible=visible,
            )
    return Devices(visible)


def _ask() -> list[list[str]] | None:
    """None where there is no nvidia-smi; where it fails, as without a driver, there are no GPUs."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stdout", None) or getattr(error, "stderr", None) or str(error)
        log_event(log, "devices_unknown", level=logging.WARNING, reason=str(told).strip())
        return []
    return listed(done.stdout)
