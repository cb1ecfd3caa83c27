"""API keys: their shape, their checksum, the header they arrive in, and what is shown of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.security.apikeys import bearer_token, hash_key, mask, new_key, prefix_of, verify

SHAPE = re.compile(r"sk_stepway_[a-z0-9]{8}_[0-9A-Za-z]{38}")


def test_a_new_key_is_recognised_and_verified() -> None:
    key = new_key()
    assert SHAPE.fullmatch(key.plain)
    assert prefix_of(key.plain) == key.prefix
    assert re.fullmatch(r"[0-9a-f]{64}", key.hash)
    assert verify(key.plain, key.hash)
    assert not verify(new_key().plain, key.hash)


def test_keys_do_not_repeat() -> None:
    keys = [new_key() for _ in range(500)]
    assert (
        len({key.plain for key in keys}) == len({key.hash for key in keys}) == len({key.prefix for key in keys}) == 500
    )


def test_the_format_is_pinned() -> None:
    key = "sk_stepway_ab12cd34_0123456789ABCDEFGHIJKLMNOPQRSTUV38Z1Jt"
    assert prefix_of(key) == "ab12cd34"
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_every_mistyped_character_is_noticed() -> None:
    plain = new_key().plain
    for place in range(len(plain)):
        other = "a" if plain[place] != "a" else "b"
        assert prefix_of(plain[:place] + other + plain[place + 1 :]) is None


def test_swapped_neighbours_are_noticed() -> None:
    plain = new_key().plain
    for place in range(len(plain) - 1):
        swapped = plain[:place] + plain[place + 1] + plain[place] + plain[place + 2 :]
        assert swapped == plain or prefix_of(swapped) is None


@pytest.mark.parametrize("change", ["{} ", " {}", "{}\n", "{}a", "x{}", "{}\x00", "{}é"])
def test_surroundings_are_refused(change: str) -> None:
    assert prefix_of(change.format(new_key().plain)) is None


@given(st.text())
def test_noise_is_no_key(noise: str) -> None:
    assert prefix_of(noise) is None
    assert mask(noise) == "…" or re.fullmatch(r"[a-z0-9]{8}", noise)
    assert not verify(noise, new_key().hash)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER   abc  ", "abc"),
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearerabc", None),
        ("Basic abc", None),
        ("Bearer a b", None),
        ("Bearer a,Bearer b", None),
        ("Bearer a\nb", None),
        ("Bearer é", None),
        ("Bearer " + "a" * 513, None),
    ],
)
def test_bearer_headers(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


def test_what_is_shown_holds_no_secret() -> None:
    key = new_key()
    assert mask(key.plain) == mask(key.prefix) == f"sk_stepway_{key.prefix}_…"
    secret = key.plain.rsplit("_", 1)[1]
    assert secret not in repr(key)
    assert secret not in f"{key!r} {key!s}"
    assert mask("a password") == "…"
