"""The metadata services of three clouds, as each documents them: the zone, and notices to spot machines."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar

import httpx
import msgspec

CALL_SECONDS = 3.0
LINK_LOCAL = "http://169.254.169.254"

Answer = TypeVar("Answer")


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud takes this machine back."""

    reason: str
    in_seconds: float | None
    """From when it was read; not positive: any moment. None: it may be taken back, and nobody says when."""


class OddAnswer(ValueError):
    """A metadata service answered with something that its documentation does not have."""


class Metadata(Protocol):
    """Each call raises httpx.HTTPError or OddAnswer."""

    poll_seconds: float
    """Between looks."""

    def zone(self) -> str: ...

    def look(self) -> Notice | None:
        """Ask once; takes as long as the service holds the request."""


class _Action(msgspec.Struct, frozen=True):
    action: str
    time: str


class Aws:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html, by IMDSv2."""

    poll_seconds = 5.0
    url = LINK_LOCAL
    notice_seconds = 120.0

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._token = ""
        """Fetched anew when it is refused; a token lives for hours."""

    def zone(self) -> str:
        return self._get("placement/availability-zone").raise_for_status().text.strip()

    def look(self) -> Notice | None:
        """Both are 404 while there is nothing to tell."""
        taken = self._get("spot/instance-action")
        if taken.status_code != httpx.codes.NOT_FOUND:
            action = _read(taken, _Action)
            seconds = _seconds_until(_rfc3339(action.time), taken)
            return Notice(reason=f"AWS will {action.action} this spot instance", in_seconds=seconds)
        risky = self._get("events/recommendations/rebalance")
        if risky.status_code != httpx.codes.NOT_FOUND:
            risky.raise_for_status()
            return Notice(reason="AWS recommends to leave this spot instance", in_seconds=None)
        return None

    def _get(self, path: str) -> httpx.Response:
        if not self._token:
            self._renew()
        answer = self._ask(path)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._renew()
            answer = self._ask(path)
        return answer

    def _ask(self, path: str) -> httpx.Response:
        return self._client.get(f"/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": self._token})

    def _renew(self) -> None:
        lives = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        self._token = self._client.put("/latest/api/token", headers=lives).raise_for_status().text


class Gcp:
    """https://cloud.google.com/compute/docs/instances/spot#detect-preemption"""

    poll_seconds = 1.0
    url = "http://metadata.google.internal"
    held_seconds = 60.0
    """For how long a question is held while nothing changes."""

    def __init__(self, client: httpx.Client, *, notice_seconds: float = 30.0) -> None:
        self._client = client
        self._notice_seconds = notice_seconds
        self._etag = ""
        """Of the last answer: a change while nobody asked is told at once."""

    def zone(self) -> str:
        """Told as projects/NUMBER/zones/ZONE."""
        return self._get("zone", {}).text.strip().rpartition("/")[2]

    def look(self) -> Notice | None:
        waiting = {"wait_for_change": "true", "timeout_sec": f"{self.held_seconds:g}", "last_etag": self._etag}
        answer = self._get("preempted", waiting if self._etag else {})
        self._etag = answer.headers.get("etag", "")
        match answer.text.strip().upper():
            case "TRUE":
                return Notice(reason="Google Cloud preempts this instance", in_seconds=self._notice_seconds)
            case "FALSE":
                return None
        raise OddAnswer(f"instance/preempted is {answer.text[:100]!r}, neither TRUE nor FALSE")

    def _get(self, name: str, parameters: Mapping[str, str]) -> httpx.Response:
        timeout = httpx.Timeout(CALL_SECONDS, read=CALL_SECONDS + (self.held_seconds if parameters else 0.0))
        headers = {"Metadata-Flavor": "Google"}
        path = f"/computeMetadata/v1/instance/{name}"
        return self._client.get(path, params=parameters, headers=headers, timeout=timeout).raise_for_status()


class _Compute(msgspec.Struct, frozen=True):
    name: str
    location: str
    zone: str = ""


class _Event(msgspec.Struct, frozen=True, rename="pascal"):
    event_type: str
    resources: tuple[str, ...] = ()
    not_before: str = ""
    """Empty once it has begun."""


class _Events(msgspec.Struct, frozen=True, rename="pascal"):
    events: tuple[_Event, ...]


class Azure:
    """https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"""

    poll_seconds = 1.0
    url = LINK_LOCAL
    first_answer_seconds = 130.0
    """The first question switches the service on, which takes up to two minutes."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._compute: _Compute | None = None

    def zone(self) -> str:
        """As Kubernetes has it: westeurope-1, or the region where there are no zones."""
        own = self._own()
        return f"{own.location}-{own.zone}" if own.zone else own.location

    def look(self) -> Notice | None:
        """Events of neighbours in the same scale set are told too."""
        answer = self._get("scheduledevents", "2020-07-01", timeout=self.first_answer_seconds)
        name = self._own().name
        for event in _read(answer, _Events).events:
            if event.event_type == "Preempt" and name in event.resources:
                seconds = _seconds_until(_rfc1123(event.not_before), answer) if event.not_before else 0.0
                return Notice(reason="Azure evicts this spot machine", in_seconds=seconds)
        return None

    def _own(self) -> _Compute:
        if self._compute is None:
            self._compute = _read(self._get("instance/compute", "2021-02-01", timeout=CALL_SECONDS), _Compute)
        return self._compute

    def _get(self, path: str, version: str, *, timeout: float) -> httpx.Response:
        return self._client.get(
            f"/metadata/{path}",
            params={"api-version": version},
            headers={"Metadata": "true"},
            timeout=httpx.Timeout(CALL_SECONDS, read=timeout),
        )


def _read(answer: httpx.Response, kind: type[Answer]) -> Answer:
    answer.raise_for_status()
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as error:
        raise OddAnswer(f"{answer.url.path}: {error}") from error


def _seconds_until(moment: dt.datetime, answer: httpx.Response) -> float:
    """By the clock of the service, where its answer tells the time."""
    told = answer.headers.get("date")
    return (moment - (_rfc1123(told) if told else dt.datetime.now(dt.UTC))).total_seconds()


def _rfc3339(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except ValueError as error:
        raise OddAnswer(f"{text[:100]!r} is no time") from error


def _rfc1123(text: str) -> dt.datetime:
    try:
        return parsedate_to_datetime(text).astimezone(dt.UTC)
    except ValueError as error:
        raise OddAnswer(f"{text[:100]!r} is no time") from error
