"""Signatures by Standard Webhooks, and when a delivery is tried again."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.errors import InvalidRequest, Unauthorized
from batchyard.settings import WebhookSettings
from batchyard.webhooks import (
    ALL_EVENTS,
    SECRET_PREFIX,
    Event,
    message_id,
    new_secret,
    pack_events,
    retry_in_seconds,
    sign,
    unpack_events,
    verify,
)

# By hand: printf 'msg_00000000000004d2.1700000000.{"type":"job.succeeded"}' | openssl dgst -sha256 -mac HMAC \
#     -macopt hexkey:$(printf 'thirty-two bytes of a te' | xxd -p -c 64) -binary | base64
SECRET = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBhIHRl"
BODY = b'{"type":"job.succeeded"}'
SIGNED = {
    "webhook-id": "msg_00000000000004d2",
    "webhook-timestamp": "1700000000",
    "webhook-signature": "v1,SwkRjrsNITUcNNAJJWvtQymWglaTOuM3+wZXt/6GQkE=",
}
NOW = 1_700_000_060.0


def test_a_message_is_signed_as_by_hand() -> None:
    assert sign(BODY, message=message_id(1234), timestamp=1_700_000_000, valid=[SECRET]) == SIGNED
    assert verify(BODY, SIGNED, SECRET, now_seconds=NOW) == {"type": "job.succeeded"}


def test_headers_are_found_in_any_spelling_and_one_of_several_signatures_is_enough() -> None:
    other = new_secret()
    both = sign(BODY, message="msg_1", timestamp=1_700_000_000, valid=[other, SECRET])
    spelled = {name.title(): value for name, value in both.items()}
    for secret in (SECRET, other, [new_secret(), SECRET]):
        assert verify(BODY, spelled, secret, now_seconds=NOW)["type"] == "job.succeeded"
    assert both["webhook-signature"].count("v1,") == 2


@pytest.mark.parametrize(
    ("changed", "body", "now", "why"),
    [
        ({}, BODY + b" ", NOW, "no webhook-signature fits"),
        ({"webhook-id": "msg_2"}, BODY, NOW, "no webhook-signature fits"),
        ({"webhook-timestamp": "1700000001"}, BODY, NOW, "no webhook-signature fits"),
        ({"webhook-signature": SIGNED["webhook-signature"].replace("v1,", "v1a,")}, BODY, NOW, "no webhook-signature"),
        ({"webhook-signature": "é"}, BODY, NOW, "no webhook-signature fits"),
        ({"webhook-signature": ""}, BODY, NOW, "has the headers"),
        ({"webhook-timestamp": "soon"}, BODY, NOW, "must be Unix seconds"),
        ({"webhook-timestamp": "٣"}, BODY, NOW, "must be Unix seconds"),
        ({}, BODY, NOW + 300, "another time"),
        ({}, BODY, NOW - 400, "another time"),
    ],
)
def test_whatever_does_not_fit_is_refused(changed: Mapping[str, str], body: bytes, now: float, why: str) -> None:
    with pytest.raises(Unauthorized, match=why):
        verify(body, {**SIGNED, **changed}, SECRET, now_seconds=now)


def test_another_secret_is_refused_and_what_is_none_is_named() -> None:
    with pytest.raises(Unauthorized):
        verify(BODY, SIGNED, new_secret(), now_seconds=NOW)
    with pytest.raises(InvalidRequest, match="whsec_"):
        verify(BODY, SIGNED, "whsec_not base 64!", now_seconds=NOW)


def test_secrets_are_random_and_long() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith(SECRET_PREFIX) and len(secret) == len(SECRET_PREFIX) + 32 for secret in made)


@given(st.binary(max_size=200), st.integers(0, 1 << 62))
def test_what_is_signed_verifies(text: bytes, subject: int) -> None:
    body = json.dumps({"text": text.hex()}).encode()
    headers = sign(body, message=message_id(subject), timestamp=int(NOW), valid=[SECRET])
    assert verify(body, headers, SECRET, now_seconds=NOW) == {"text": text.hex()}


@given(st.sets(st.sampled_from(ALL_EVENTS)))
def test_a_choice_of_events_is_kept_as_bits(words: set[str]) -> None:
    assert set(unpack_events(pack_events(words))) == words


def test_events_are_named_as_in_the_api() -> None:
    assert ALL_EVENTS == ("job.succeeded", "job.failed", "job.cancelled", "job.expired", "bulk.finished")
    assert Event.BULK_FINISHED.word == "bulk.finished"


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_attempts_begin_seconds_apart_and_end_after_three_days() -> None:
    delays = WebhookSettings().retry_seconds
    middle = [retry_in_seconds(attempts, delays=delays, chance=0.5) for attempts in range(1, len(delays) + 1)]
    assert middle[0] == 5.0
    assert middle == sorted(middle, key=lambda delay: delay or 0)
    assert 2.9 <= sum(delay or 0 for delay in middle) / 86_400 <= 3.3
    assert retry_in_seconds(len(delays) + 1, delays=delays, chance=0.5) is None


def test_delays_are_spread_and_receivers_may_ask_for_more_within_bounds() -> None:
    delays = [10.0, 100.0]
    assert retry_in_seconds(1, delays=delays, chance=0.0) == pytest.approx(8.0)
    assert retry_in_seconds(1, delays=delays, chance=1.0) == pytest.approx(12.0)
    assert retry_in_seconds(1, delays=delays, chance=0.5, asked_seconds=3.0) == pytest.approx(10.0)
    assert retry_in_seconds(1, delays=delays, chance=0.5, asked_seconds=60.0) == pytest.approx(60.0)
    assert retry_in_seconds(1, delays=delays, chance=0.5, asked_seconds=1e9) == pytest.approx(86_400.0)
    assert retry_in_seconds(3, delays=delays, chance=0.5, asked_seconds=1.0) is None
