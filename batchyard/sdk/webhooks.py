"""A tenant's webhooks: `client.webhooks`. What receives their messages needs `batchyard.webhooks.verify` alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import msgspec

from batchyard import schemas
from batchyard.sdk.calls import JSON_ENCODER, decode, text_of
from batchyard.sdk.steps import Patience, Request, Steps, call

T = TypeVar("T")

PAGE = 100


class WhichDeliveries(TypedDict, total=False):
    """Which deliveries are meant; all that is given must hold."""

    webhook_id: str | None
    job_id: str | None
    bulk_id: str | None
    state: schemas.DeliveryStateWord | None


class WhichReplayed(TypedDict, total=False):
    """Which deliveries are sent once more; all that is given must hold."""

    delivery_id: str | None
    webhook_id: str | None
    state: schemas.DeliveryStateWord | None
    """Dead ones where it is not given; of a `delivery_id` whatever it is."""
    ended_from: datetime | None
    ended_before: datetime | None


class Webhooks:
    """The endpoints of a `Client`'s tenant, and what became of the messages to them."""

    def __init__(self, run: Callable[[Steps[Any]], Any], patience: Callable[[], Patience]) -> None:
        self._run = run
        self._patience = patience

    def create(
        self, url: str, *, events: Sequence[schemas.EventWord] | None = None, description: str = ""
    ) -> schemas.CreatedWebhook:
        """An endpoint that hears of all jobs and bulks that end from now on, or of the events named. Its `secret`
        verifies its messages."""
        made: schemas.CreatedWebhook = self._run(_create(url, events=events, description=description))
        return made

    def list(self) -> list[schemas.Webhook]:
        """The one without a URL is of those that jobs and bulks name themselves."""
        found: list[schemas.Webhook] = self._run(_list(self._patience()))
        return found

    def secrets(self, webhook_id: str) -> Sequence[str]:
        """By any of which a message is verified now, the newest first."""
        secrets: Sequence[str] = self._run(_secrets(webhook_id, self._patience()))
        return secrets

    def rotate(self, webhook_id: str, *, overlap_seconds: float = 24 * 3600.0) -> Sequence[str]:
        """Give it a new secret, the first of those returned; the last one signs too for `overlap_seconds`."""
        secrets: Sequence[str] = self._run(_rotate(webhook_id, overlap_seconds=overlap_seconds))
        return secrets

    def enable(self, webhook_id: str) -> schemas.Webhook:
        """What is pending for it is due again."""
        changed: schemas.Webhook = self._run(_steer(webhook_id, "enable", self._patience()))
        return changed

    def disable(self, webhook_id: str) -> schemas.Webhook:
        """It hears of nothing that ends meanwhile."""
        changed: schemas.Webhook = self._run(_steer(webhook_id, "disable", self._patience()))
        return changed

    def delete(self, webhook_id: str) -> None:
        """With its deliveries."""
        self._run(_delete(webhook_id, self._patience()))

    def deliveries(self, **which: Unpack[WhichDeliveries]) -> Iterator[schemas.WebhookDelivery]:
        """All that match, newest first, fetched page by page."""
        after = None
        while True:
            page = self._run(_deliveries(which, after=after, patience=self._patience()))
            yield from page.deliveries
            after = page.next
            if after is None:
                return

    def replay(self, **which: Unpack[WhichReplayed]) -> int:
        """Send messages once more, step by step, all that match; returns how many."""
        count: int = self._run(_replay(which, self._patience()))
        return count


class AsyncWebhooks:
    """As `Webhooks`, of an `AsyncClient`."""

    def __init__(self, run: Callable[[Steps[Any]], Awaitable[Any]], patience: Callable[[], Patience]) -> None:
        self._run = run
        self._patience = patience

    async def create(
        self, url: str, *, events: Sequence[schemas.EventWord] | None = None, description: str = ""
    ) -> schemas.CreatedWebhook:
        made: schemas.CreatedWebhook = await self._run(_create(url, events=events, description=description))
        return made

    async def list(self) -> list[schemas.Webhook]:
        found: list[schemas.Webhook] = await self._run(_list(self._patience()))
        return found

    async def secrets(self, webhook_id: str) -> Sequence[str]:
        secrets: Sequence[str] = await self._run(_secrets(webhook_id, self._patience()))
        return secrets

    async def rotate(self, webhook_id: str, *, overlap_seconds: float = 24 * 3600.0) -> Sequence[str]:
        secrets: Sequence[str] = await self._run(_rotate(webhook_id, overlap_seconds=overlap_seconds))
        return secrets

    async def enable(self, webhook_id: str) -> schemas.Webhook:
        changed: schemas.Webhook = await self._run(_steer(webhook_id, "enable", self._patience()))
        return changed

    async def disable(self, webhook_id: str) -> schemas.Webhook:
        changed: schemas.Webhook = await self._run(_steer(webhook_id, "disable", self._patience()))
        return changed

    async def delete(self, webhook_id: str) -> None:
        await self._run(_delete(webhook_id, self._patience()))

    async def deliveries(self, **which: Unpack[WhichDeliveries]) -> AsyncIterator[schemas.WebhookDelivery]:
        after = None
        while True:
            page = await self._run(_deliveries(which, after=after, patience=self._patience()))
            for each in page.deliveries:
                yield each
            after = page.next
            if after is None:
                return

    async def replay(self, **which: Unpack[WhichReplayed]) -> int:
        count: int = await self._run(_replay(which, self._patience()))
        return count


# --- steps ------------------------------------------------------------------------------------------------------------


def _create(url: str, *, events: Sequence[schemas.EventWord] | None, description: str) -> Steps[schemas.CreatedWebhook]:
    """Sent once: two answers would be two endpoints."""
    chosen = {} if events is None else {"events": list(events)}
    body = JSON_ENCODER.encode(schemas.WebhookRequest(url=url, description=description, **chosen))
    response = yield from call(Request(method="POST", path="/v1/webhooks", body=body), Patience(0))
    return decode(response, schemas.CreatedWebhook)


def _list(patience: Patience) -> Steps[list[schemas.Webhook]]:
    response = yield from call(Request(method="GET", path="/v1/webhooks"), patience)
    return decode(response, schemas.WebhookList).webhooks


def _secrets(webhook_id: str, patience: Patience) -> Steps[list[str]]:
    response = yield from call(Request(method="GET", path=f"{_path(webhook_id)}/secret"), patience)
    return decode(response, schemas.WebhookSecrets).secrets


def _rotate(webhook_id: str, *, overlap_seconds: float) -> Steps[list[str]]:
    """Sent once: a second time the secret in use would be forgotten."""
    body = JSON_ENCODER.encode(schemas.WebhookRotation(overlap_seconds=overlap_seconds))
    sent = Request(method="POST", path=f"{_path(webhook_id)}/rotate", body=body)
    response = yield from call(sent, Patience(0))
    return decode(response, schemas.WebhookSecrets).secrets


def _steer(webhook_id: str, verb: str, patience: Patience) -> Steps[schemas.Webhook]:
    response = yield from call(Request(method="POST", path=f"{_path(webhook_id)}/{verb}"), patience)
    return decode(response, schemas.Webhook)


def _delete(webhook_id: str, patience: Patience) -> Steps[None]:
    yield from call(Request(method="DELETE", path=_path(webhook_id)), patience)


def _deliveries(which: WhichDeliveries, *, after: str | None, patience: Patience) -> Steps[schemas.WebhookDeliveryList]:
    asked = {**which, "after": after, "limit": PAGE}
    query = {name: text_of(value) for name, value in asked.items() if value is not None}
    response = yield from call(Request(method="GET", path="/v1/webhook-deliveries", query=query), patience)
    return decode(response, schemas.WebhookDeliveryList)


def _replay(which: WhichReplayed, patience: Patience) -> Steps[int]:
    count = 0
    step = schemas.WebhookReplay(**which)
    while True:
        body = JSON_ENCODER.encode(step)
        response = yield from call(Request(method="POST", path="/v1/webhook-deliveries/replay", body=body), patience)
        done = decode(response, schemas.WebhookReplayed)
        count += done.count
        if done.next is None:
            return count
        step = msgspec.structs.replace(step, after=done.next)


def _path(webhook_id: str) -> str:
    return f"/v1/webhooks/{quote(webhook_id)}"
