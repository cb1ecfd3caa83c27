"""What the logs show, and what they must not."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from shared import log

SECRET = "hunter2"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure(json=True, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ids_come_from_the_context(stream: io.StringIO) -> None:
    with log.bound(job_id="j1"):
        log.get_logger("x").info("started", step=2)
        logging.getLogger("other").warning("by %s", "hand")
    log.get_logger("x").info("after")
    first, second, third = _lines(stream)
    assert (first["event"], first["step"], first["job_id"], first["level"]) == ("started", 2, "j1", "info")
    assert (second["event"], second["job_id"], second["logger"]) == ("by hand", "j1", "other")
    assert "job_id" not in third


@pytest.mark.parametrize(
    "key",
    ["token", "api_key", "apiKey", "key", "secret", "client_secret", "password", "Authorization", "kubeconfig",
     "hf-token", "DATABASE_PASSWORD", "set_cookie", "encryption_key", "accessToken", "credentials"],
)  # fmt: skip
def test_values_of_secrets_are_masked(stream: io.StringIO, key: str) -> None:
    log.get_logger("x").info("event", **{key: SECRET, "inner": [{key: {"deep": SECRET}}], "n": 1})
    assert SECRET not in stream.getvalue()
    assert _lines(stream)[0]["n"] == 1


@pytest.mark.parametrize(
    "key", ["key_id", "max_tokens", "token_count", "key_prefix", "monkey", "tokenizer", "keyboard"]
)
def test_what_is_no_secret_is_shown(stream: io.StringIO, key: str) -> None:
    log.get_logger("x").info("event", **{key: "shown"})
    assert _lines(stream)[0][key] == "shown"


def test_secrets_in_texts_are_masked(stream: io.StringIO) -> None:
    log.get_logger("x").info(
        f"sent Authorization: Bearer {SECRET}", url=f"https://me:{SECRET}@host/x", headers=[f"bearer {SECRET}"]
    )
    line = _lines(stream)[0]
    assert SECRET not in json.dumps(line)
    assert line["url"] == "https://me:***@host/x"


class Model(BaseModel):
    number: int


def _fails_validation() -> None:
    Model.model_validate({"number": SECRET})


def _fails_in_sql() -> None:
    raise DBAPIError(f"INSERT '{SECRET}'", {"value": SECRET}, psycopg.errors.UniqueViolation(f"DETAIL: ({SECRET})"))


@pytest.mark.parametrize("fail", [_fails_validation, _fails_in_sql])
def test_exceptions_do_not_quote_what_was_sent(stream: io.StringIO, fail: Any) -> None:
    try:
        try:
            fail()
        except Exception as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        log.get_logger("x").exception("failed")
    text = _lines(stream)[0]["exception"]
    assert SECRET not in text
    assert "RuntimeError: outer" in text
    assert "test_log.py" in text


def test_the_members_of_a_group_are_shown(stream: io.StringIO) -> None:
    log.get_logger("x").error("failed", exc_info=ExceptionGroup("two", [ValueError("one"), KeyError("other")]))
    text = _lines(stream)[0]["exception"]
    assert "ValueError: one" in text
    assert "KeyError: 'other'" in text


def test_the_console(stream: io.StringIO) -> None:
    out = io.StringIO()
    log.configure(json=False, stream=out)
    try:
        raise RuntimeError(f"Bearer {SECRET}")
    except RuntimeError:
        log.get_logger("x").exception("failed", token=SECRET)
    assert "failed" in out.getvalue()
    assert SECRET not in out.getvalue()
