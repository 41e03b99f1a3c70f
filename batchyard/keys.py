"""API keys as text: how one is made, read and compared. Pure but for the operating system's randomness.

A key is `by_PREFIX_SECRET` in lower-case base 32: the prefix (40 bits) is public and names the key in lists and logs,
the secret (160 bits) is shown once. What is stored is the SHA-256 of the whole text; so many random bits need no salt.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

import msgspec

SCOPES = ("jobs", "admin", "metrics", "scale", "webhooks")
"""What a key may allow: `jobs` submits, reads and cancels its tenant's jobs; `metrics` reads the figures of the whole
system; `scale` reads what size a pool should have; `webhooks` manages its tenant's webhooks; `admin`, which is the
operator's, is allowed everything, and makes, rotates and revokes the keys of all tenants."""

_FORM = re.compile(r"by_([a-z2-7]{8})_[a-z2-7]{32}\Z")


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key just made. `text` is shown to its owner and kept nowhere."""

    text: str
    prefix: str
    digest: bytes


def mint() -> NewKey:
    """A fresh random key."""
    prefix, secret = _letters(5), _letters(20)
    text = f"by_{prefix}_{secret}"
    return NewKey(text=text, prefix=prefix, digest=digest_of(text))


def prefix_of(text: str) -> str | None:
    """The public part of a key; None where the text is no key."""
    match = _FORM.match(text)
    return match[1] if match else None


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def is_same(presented: bytes, stored: bytes) -> bool:
    """Compare digests in constant time."""
    return hmac.compare_digest(presented, stored)


def _letters(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()
