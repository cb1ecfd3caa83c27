"""What a joined server tells of errors, and how it is named."""

from pathlib import Path

import pytest

from stepway.runner import told
from stepway.runner.config import Config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file: /srv/data/a.txt", "no such file: /srv/data/a.txt"),
        ("first\nsecond", "first"), ("a\x00b\x1b[31mc", "a b [31mc"),
        ("GET https://u:pw@host/x?sig=abc&a=b failed", "GET https://***@host/x?***&*** failed"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("key sk_stepway_ab12cd34_0123456789abcdef refused", "key *** refused"),
        ("token ghp_0123456789abcdefghij expired", "token *** expired"),
        ("eyJhbGciOi.eyJzdWIi.c2ln is no token", "*** is no token"),
        ("{'password': 'hunter two', \"api_key\": \"x y\"}", "{'password': ***, \"api_key\": ***}"),
        ("OPENAI_API_KEY=abc, retry", "OPENAI_API_KEY=***, retry"),
        ("digest " + "0a" * 32, "digest ***"),
    ],
)  # fmt: skip
def test_errors_are_told_without_secrets(text: str, shown: str) -> None:
    assert told.error(text) == shown


def test_long_errors_are_cut() -> None:
    assert len(told.error("word " * 1000)) == told.LONGEST_ERROR
    assert told.error("x " * 100_000).endswith("…")


def test_servers_over_one_store_are_one(tmp_path: Path) -> None:
    def instance(**values: object) -> str:
        return told.instance(Config(**values))  # type: ignore[arg-type]  # fields of it

    first = instance(database="postgresql://a:secret@db.example/flows?sslmode=require", port=1)
    assert first == instance(database="postgresql://b:other@db.example:5432/flows", port=2)
    assert first != instance(database="postgresql://a:secret@db.example/others")
    assert instance(port=1) != instance(port=2)
    assert instance(data_dir=tmp_path, port=1) == instance(data_dir=tmp_path, port=2)
    assert "secret" not in first


@pytest.mark.parametrize(
    ("name", "shown"), [("flows", "flows"), (" a\tb ", "ab"), ("x" * 500, "x" * 100), ("\t", "workflows")]
)
def test_names(name: str, shown: str) -> None:
    assert told.name(Config(name=name)) == shown
