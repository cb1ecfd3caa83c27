"""Tokens for a model's files: bound to one endpoint, one digest, one key, and to time."""

import base64
import hashlib
import hmac
from uuid import UUID

import jwt
import pytest

from shared.security import loader_token

ENDPOINT, OTHER = UUID("7d5e4d0c-8f0a-4c0e-9e52-1f1f6f0a8a11"), UUID("0b0a9d0e-53a5-4f04-9b4f-4c5f20a7a9c2")
KEY, DIGEST = b"k" * 32, "a" * 64


def test_the_token_is_an_hmac_of_the_endpoint_under_its_worker_key() -> None:
    expected = hmac.digest(b"worker key", b"loader\0" + str(ENDPOINT).encode(), hashlib.sha256)
    token = loader_token.token_of("worker key", ENDPOINT)
    assert base64.urlsafe_b64decode(token + "=") == expected
    assert token.isascii()
    assert len(token) == 43


@pytest.mark.parametrize("given", ["", "x", "\udcff", "a" * 5000, loader_token.token_of("worker key", OTHER)])
def test_other_texts_are_not_the_token(given: str) -> None:
    assert not loader_token.is_token_of(given, "worker key", ENDPOINT)


def test_a_new_worker_key_ends_the_token() -> None:
    token = loader_token.token_of("worker key", ENDPOINT)
    assert loader_token.is_token_of(token, "worker key", ENDPOINT)
    assert not loader_token.is_token_of(token, "another key", ENDPOINT)


def test_a_session_names_its_digest() -> None:
    session = loader_token.open_session(KEY, ENDPOINT, DIGEST, 60)
    assert loader_token.digest_of_session(session, KEY, ENDPOINT) == DIGEST


def test_a_session_is_of_one_endpoint_one_key_and_a_time() -> None:
    session = loader_token.open_session(KEY, ENDPOINT, DIGEST, 60)
    assert loader_token.digest_of_session(session, KEY, OTHER) is None
    assert loader_token.digest_of_session(session, b"l" * 32, ENDPOINT) is None
    ended = loader_token.open_session(KEY, ENDPOINT, DIGEST, -1)
    assert loader_token.digest_of_session(ended, KEY, ENDPOINT) is None


CLAIMS = {"aud": "stepway:model-files", "sub": str(ENDPOINT), "digest": DIGEST, "exp": 4_102_444_800}


def test_the_forgeries_below_differ_from_a_session_in_one_thing_each() -> None:
    assert loader_token.digest_of_session(jwt.encode(CLAIMS, KEY, "HS256"), KEY, ENDPOINT) == DIGEST


@pytest.mark.parametrize("without", ["aud", "sub", "digest", "exp"])
def test_a_session_without_a_claim_is_none(without: str) -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != without}
    assert loader_token.digest_of_session(jwt.encode(claims, KEY, "HS256"), KEY, ENDPOINT) is None


def test_a_session_of_another_kind_is_none() -> None:
    for forged in (
        jwt.encode(CLAIMS, "", "none"),
        jwt.encode(CLAIMS, KEY + KEY, "HS512"),
        jwt.encode({**CLAIMS, "aud": "another"}, KEY, "HS256"),
        jwt.encode({**CLAIMS, "digest": ["a"]}, KEY, "HS256"),
        jwt.encode(CLAIMS, KEY, "HS256")[:-2],
        "", "a.b.c", "\udcff.\udcff.\udcff", "é", "x" * 100_000,
    ):  # fmt: skip
        assert loader_token.digest_of_session(forged, KEY, ENDPOINT) is None
