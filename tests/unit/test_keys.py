"""API keys are random, recognisable and compared by their digest."""

from batchyard import keys


def test_a_key_names_its_prefix_and_matches_its_digest() -> None:
    key = keys.mint()
    assert keys.prefix_of(key.text) == key.prefix
    assert keys.is_same(keys.digest_of(key.text), key.digest)
    assert not keys.is_same(keys.digest_of(keys.mint().text), key.digest)


def test_the_secret_has_160_bits() -> None:
    secret = keys.mint().text.split("_")[2]
    assert len(secret) * 5 == 160


def test_other_text_is_no_key() -> None:
    good = keys.mint().text
    for text in ("", "by_", good + "a", good[:-1], good.upper(), " " + good, good.replace("by_", "bx_"), good + "\n"):
        assert keys.prefix_of(text) is None
