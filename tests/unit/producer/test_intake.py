import asyncio
from typing import Any

import pytest

from batchyard.errors import InvalidRequest, TooLarge, Unavailable
from batchyard_producer import intake
from batchyard_producer.intake import Gone, Request, Room

pytestmark = pytest.mark.anyio


def request(*messages: dict[str, Any], query: bytes = b"", room: Room | None = None, **headers: str) -> Request:
    """A request whose body comes in these messages; afterwards the client stays without a word."""
    pending = list(messages)

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": query, "headers": named}
    return Request(scope, receive, send, room=room or Room(max_body_bytes=1))


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


DISCONNECT = {"type": "http.disconnect"}


async def test_a_body_in_pieces_is_put_together() -> None:
    assert await request(piece(b"whole")).body(limit=5) == b"whole"
    assert await request(piece(b"a", more=True), piece(b"", more=True), piece(b"bc")).body(limit=3) == b"abc"


async def test_a_body_beyond_the_limit_is_refused_however_it_comes() -> None:
    for asked in (
        request(piece(b"123456")),
        request(piece(b"123", more=True), piece(b"456")),
        request(content_length="60000"),
    ):
        with pytest.raises(TooLarge) as caught:
            await asked.body(limit=5)
        assert caught.value.details["limit"] == 5


async def test_all_bodies_together_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LEAST_ROOM_BYTES", 10)
    room = Room(max_body_bytes=1)
    first = request(piece(b"123456"), room=room)
    assert await first.body(limit=6) == b"123456"
    second = request(piece(b"1234", more=True), piece(b"5"), room=room)
    with pytest.raises(Unavailable, match="10 bytes") as refused:
        await second.body(limit=6)
    assert refused.value.retry_after_seconds == 1
    assert room.taken_bytes == 10

    # What was given back is free for others.
    second.forget()
    assert room.taken_bytes == 6
    assert await request(piece(b"1234"), room=room).body(limit=6) == b"1234"
    for one in (first, first):
        one.forget()
    assert room.taken_bytes == 4


async def test_the_room_holds_several_bodies_of_the_largest_size() -> None:
    largest = intake.LEAST_ROOM_BYTES
    room = Room(max_body_bytes=largest)
    for _ in range(intake.ROOM_BODIES):
        room.take(largest)
    with pytest.raises(Unavailable):
        room.take(1)


async def test_a_client_that_leaves_midway_is_gone() -> None:
    for asked in (request(DISCONNECT), request(piece(b"1", more=True), DISCONNECT)):
        with pytest.raises(Gone):
            await asked.body(limit=5)


async def test_a_body_that_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.01)
    for asked in (request(), request(piece(b"1", more=True))):
        with pytest.raises(InvalidRequest, match="nothing came"):
            await asked.body(limit=5)


async def test_a_body_that_comes_late_is_taken_and_a_wait_for_it_can_be_cancelled() -> None:
    begun, arrived, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        begun.set()
        try:
            await arrived.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return piece(b"late")

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    room = Room(max_body_bytes=1)
    first, second = (asyncio.ensure_future(Request(scope, receive, send, room=room).body(limit=5)) for _ in range(2))
    await begun.wait()
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert second.cancelled()
    assert cancelled.is_set()
    arrived.set()
    assert await first == b"late"


async def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="compressed"):
        await request(content_encoding="gzip").body(limit=5)
    assert await request(piece(b"1"), content_encoding="identity").body(limit=5) == b"1"


async def test_waiting_ends_when_the_client_hangs_up() -> None:
    ended = asyncio.Event()

    async def long_work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(Gone):
        await request(DISCONNECT).unless_gone(long_work())
    assert ended.is_set()

    async def quick_work() -> int:
        return 3

    assert await request().unless_gone(quick_work()) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("wait=5", 5.0), ("respond-async, wait=7", 7.0), ("wait=900", 60.0), ("wait=soon", 0.0), ("wait", 0.0)],
)
async def test_a_preference_to_wait(text: str, seconds: float) -> None:
    assert request(prefer=text).preferred_wait() == seconds
    assert request().preferred_wait() == 0.0


async def test_seconds_in_the_query() -> None:
    assert request(query=b"wait=1.5&after=").seconds("wait") == 1.5
    assert request(query=b"wait=1000").seconds("wait") == 60.0
    assert request().seconds("wait") == 0.0
    for text in (b"wait=", b"wait=x", b"wait=-1", b"wait=nan"):
        with pytest.raises(InvalidRequest):
            request(query=text).seconds("wait")


async def test_an_idempotency_key_has_a_form() -> None:
    assert request(idempotency_key="k").idempotency_key() == "k"
    assert request().idempotency_key() is None
    for text in ("", "x" * 256, "a\tb"):
        with pytest.raises(InvalidRequest):
            request(idempotency_key=text).idempotency_key()
