"""`batchyard webhooks`: who hears of what has ended. Works on the database, so it needs no API and no key."""

from __future__ import annotations

from datetime import datetime

import click
import msgspec
from rich.table import Table
from rich.text import Text

from batchyard.cli.figures import output
from batchyard.cli.invocation import Invocation
from batchyard.cli.keys import tenant_named
from batchyard.destinations import check_url, networks
from batchyard.errors import InvalidRequest
from batchyard.jobs import format_id, parse_id
from batchyard.schemas import rfc3339
from batchyard.store.base import DeliveryFilter, DeliveryState, Webhook
from batchyard.webhooks import ALL_EVENTS

STEP = 1000
HOUR_MS = 3_600_000

TENANT = click.option("--tenant", default="default", show_default=True, metavar="NAME")
STATE = click.Choice([state.word for state in DeliveryState])
MOMENT = click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S%z"])


@click.group()
def webhooks() -> None:
    """Endpoints that hear when jobs and bulks end, and what became of the messages to them."""


@webhooks.command("list")
@TENANT
@click.pass_obj
def list_(invocation: Invocation, /, *, tenant: str) -> None:
    """List the endpoints."""
    store = invocation.store()
    table = Table("id", "url", "events", "description", "state", box=None)
    for each in store.webhooks(tenant_id=tenant_named(store, tenant).id):
        state = "enabled"
        if each.disabled_at_ms is not None:
            state = f"disabled {rfc3339(each.disabled_at_ms)}: {each.disabled_because}"
        url = each.url or "as jobs and bulks name it"
        table.add_row(format_id(each.id), Text(url), " ".join(each.events), Text(each.description), state)
    output().print(table)


@webhooks.command("add")
@click.argument("url")
@click.option("--event", "events", multiple=True, type=click.Choice(ALL_EVENTS), help="May be given often; else all.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@TENANT
@click.pass_obj
def add(invocation: Invocation, /, *, url: str, events: tuple[str, ...], description: str, tenant: str) -> None:
    """Add an endpoint at URL, and print the secret by which its messages are verified."""
    check_url(url, allowed=networks(invocation.settings().webhooks.allowed_networks))
    store = invocation.store()
    owner = tenant_named(store, tenant)
    made = store.create_webhook(tenant_id=owner.id, url=url, events=events or ALL_EVENTS, description=description)
    click.echo(f"endpoint {format_id(made.id)} of tenant {owner.name}; its secret is:", err=True)
    click.echo(made.secrets[0])


@webhooks.command("rotate")
@click.argument("id")
@click.option("--overlap-hours", type=click.FloatRange(min=0, max=720), default=24.0, show_default=True)
@TENANT
@click.pass_obj
def rotate(invocation: Invocation, /, *, id: str, overlap_hours: float, tenant: str) -> None:  # noqa: A002
    """Give the endpoint ID a new secret, and print it. Messages are signed with both for the overlap."""
    store = invocation.store()
    overlap_ms = round(overlap_hours * HOUR_MS)
    changed = store.rotate_webhook(_number(id), tenant_id=tenant_named(store, tenant).id, overlap_ms=overlap_ms)
    click.echo(f"the new secret of endpoint {id}:", err=True)
    click.echo(changed.secrets[0])


@webhooks.command("enable")
@click.argument("id")
@TENANT
@click.pass_obj
def enable(invocation: Invocation, /, *, id: str, tenant: str) -> None:  # noqa: A002
    """Enable an endpoint; what is pending for it is due again."""
    store = invocation.store()
    _say(store.enable_webhook(_number(id), tenant_id=tenant_named(store, tenant).id), "enabled")


@webhooks.command("disable")
@click.argument("id")
@TENANT
@click.pass_obj
def disable(invocation: Invocation, /, *, id: str, tenant: str) -> None:  # noqa: A002
    """Disable an endpoint: it hears of nothing that ends meanwhile, and what is pending for it waits."""
    store = invocation.store()
    tenant_id = tenant_named(store, tenant).id
    _say(store.disable_webhook(_number(id), tenant_id=tenant_id, because="disabled by the operator"), "disabled")


@webhooks.command("remove")
@click.argument("id")
@TENANT
@click.pass_obj
def remove(invocation: Invocation, /, *, id: str, tenant: str) -> None:  # noqa: A002
    """Remove an endpoint with its deliveries."""
    store = invocation.store()
    store.delete_webhook(_number(id), tenant_id=tenant_named(store, tenant).id)
    click.echo(f"removed endpoint {id}")


@webhooks.command("deliveries")
@click.option("--endpoint", metavar="ID")
@click.option("--job", "subject", metavar="ID", help="Of this job, or bulk.")
@click.option("--only", type=STATE, help="In this state.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=50, show_default=True)
@TENANT
@click.pass_obj
def deliveries(
    invocation: Invocation,
    /,
    *,
    endpoint: str | None,
    subject: str | None,
    only: str | None,
    limit: int,
    tenant: str,
) -> None:
    """List deliveries, newest first. They are kept as long as their jobs and bulks."""
    store = invocation.store()
    wanted = DeliveryFilter(
        tenant_id=tenant_named(store, tenant).id,
        webhook_id=_optional(endpoint),
        subject_id=_optional(subject),
        state=None if only is None else DeliveryState[only.upper()],
    )
    table = Table("id", "event", "of", "url", "state", "attempts", "next attempt", "last answer", box=None)
    for each in store.deliveries(wanted, limit=limit):
        due = rfc3339(each.due_at_ms) if each.state is DeliveryState.PENDING else "–"
        told = each.error or ("–" if each.status is None else str(each.status))
        named = (format_id(each.id), each.event.word, format_id(each.subject_id), Text(each.url))
        table.add_row(*named, each.state.word, str(each.attempts), due, Text(told))
    output().print(table)


@webhooks.command("replay")
@click.argument("id", required=False)
@click.option("--endpoint", metavar="ID", help="What was to go there.")
@click.option("--from", "ended_from", type=MOMENT, help="Of jobs and bulks that ended then or later, with an offset.")
@click.option("--before", "ended_before", type=MOMENT, help="Of those that ended before.")
@click.option("--only", type=STATE, help="In this state; default: dead, of an ID whatever it is.")
@TENANT
@click.pass_obj
def replay(
    invocation: Invocation,
    /,
    *,
    id: str | None,  # noqa: A002
    endpoint: str | None,
    ended_from: datetime | None,
    ended_before: datetime | None,
    only: str | None,
    tenant: str,
) -> None:
    """Send messages once more: the delivery ID, or all that the options name."""
    if not (id or endpoint or ended_from or ended_before):
        raise click.UsageError("say which: a delivery's ID, --endpoint, --from or --before")
    store = invocation.store()
    wanted = DeliveryFilter(
        tenant_id=tenant_named(store, tenant).id,
        id=_optional(id),
        webhook_id=_optional(endpoint),
        state=DeliveryState[only.upper()] if only else None if id else DeliveryState.DEAD,
        from_ms=_unix_ms(ended_from),
        before_ms=_unix_ms(ended_before),
    )
    count, before_id = 0, None
    while True:
        step = store.replay_deliveries(msgspec.structs.replace(wanted, before_id=before_id), limit=STEP)
        count += len(step)
        if len(step) < STEP:
            break
        before_id = step[-1]
    click.echo(f"{count} {'delivery' if count == 1 else 'deliveries'} pending again")


def _say(changed: Webhook, verb: str) -> None:
    click.echo(f"{verb} endpoint {format_id(changed.id)}")


def _number(text: str) -> int:
    number = parse_id(text)
    if number is None:
        raise InvalidRequest(f'"{text[:40]}" is no id: it has 16 hexadecimal digits')
    return number


def _optional(text: str | None) -> int | None:
    return None if text is None else _number(text)


def _unix_ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)
