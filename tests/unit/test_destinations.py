"""Which URLs webhooks may be told to, and which addresses are connected to."""

import ipaddress

import pytest

from batchyard.destinations import MAX_URL_LENGTH, address_fault, check_url, networks
from batchyard.errors import InvalidRequest

LOOPBACK = networks(["127.0.0.0/8", "::1/128"])


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::10.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2001:db8::1",
        "2002:a00:1::",
        "4000::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_nothing_is_sent_beyond_the_public_internet(address: str) -> None:
    assert address_fault(ipaddress.ip_address(address), allowed=()) is not None
    bare = address.partition("%")[0]
    url = f"https://[{bare}]/" if ":" in bare else f"https://{bare}/"
    with pytest.raises(InvalidRequest, match="no address of the public internet"):
        check_url(url, allowed=())


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1111"])
def test_public_addresses_are_connected_to(address: str) -> None:
    assert address_fault(ipaddress.ip_address(address), allowed=()) is None


def test_a_network_that_is_allowed_is_so_in_every_form_and_others_are_not() -> None:
    allowed = networks(["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::7"):
        assert address_fault(ipaddress.ip_address(address), allowed=allowed) is None
    for address in ("10.2.0.1", "::ffff:10.2.0.1", "fc00::7", "127.0.0.1"):
        assert address_fault(ipaddress.ip_address(address), allowed=allowed) is not None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "goes to https"),
        ("http://127.0.0.1/", "goes to https"),
        ("ftp://example.com/", "https://HOST/PATH"),
        ("https:///path", "https://HOST/PATH"),
        ("example.com", "https://HOST/PATH"),
        ("https://user:secret@example.com/", "user or a password"),
        ("https://@example.com/", "user or a password"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:0/", "https://HOST/PATH"),
        ("https://example.com:99999/", "Port out of range"),
        ("https://exa mple.com/", "percent escapes"),
        ("https://example.com\\@127.0.0.1/", "percent escapes"),
        ("https://exämple.com/", "Punycode"),
        ("https://example.com/\r\nhost: x", "percent escapes"),
        ("https://[::1/", "Invalid IPv6"),
        ("https://example.com/" + "x" * MAX_URL_LENGTH, "at most"),
    ],
)
def test_what_is_no_url_for_a_webhook_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        check_url(url, allowed=(), pointer="/webhook")
    assert refused.value.details["pointer"] == "/webhook"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/hook", "http://localhost/hook", "http://[::1]:1/", "https://127.0.0.1/"]
)
def test_loopback_may_be_allowed_and_then_without_encryption(url: str) -> None:
    assert check_url(url, allowed=LOOPBACK) == url
    with pytest.raises(InvalidRequest):
        check_url("http://10.0.0.1/", allowed=networks(["10.0.0.0/8"]))


def test_names_are_taken_and_looked_up_later() -> None:
    for url in ("https://example.com", "https://hooks.example.com:8443/a?b=c%20d", "https://xn--exmple-cua.com/"):
        assert check_url(url, allowed=()) == url
