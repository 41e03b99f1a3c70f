"""Times that tests shorten, and by how much."""

LEASE_SECONDS = 3.0
STATED_LEASE_SECONDS = 30.0


def shortened(what: str, seconds: float, *, stated: float) -> float:
    """Note that something stated to take so long is tried with less; returns `seconds`."""
    print(f"{what}: {seconds:g} s for {stated:g} s, shortened by the factor {stated / seconds:g}")
    return seconds
