"""What is printed: nothing that a terminal would obey, nothing cut, JSON that can be read back."""

import json

import pytest

from stepway.cli.output import Column, Format, Printer, clean, size

EVIL = "a\x1b[2Jb\x9b31m\u202ec\r\x07"


def test_escapes_of_terminals_do_not_pass() -> None:
    assert clean(EVIL) == "a�[2Jb�31m�c��"
    assert clean("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize("form", [Format.JSON, Format.YAML])
def test_data_is_readable_and_harmless(form: Format, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    Printer(form).data({"name": EVIL, "é": [1, None]})
    text = capsys.readouterr().out
    assert not set(text) & {"\x1b", "\x9b", "\u202e", "\r", "\x07"}
    read = json.loads(text) if form is Format.JSON else yaml.safe_load(text)
    assert read == {"name": EVIL, "é": [1, None]}


def test_a_table_cuts_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().rows(
        [{"id": "x" * 300, "on": True, "none": None}], [Column("id", "id"), Column("on", "on"), Column("n", "none")]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "on", "n"]
    assert lines[2].split() == ["x" * 300, "yes", "-"]


def test_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().one({"name": "[red]x[/red] :smile:"})
    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_sizes() -> None:
    assert [size(value) for value in (None, 10, 2048, 98_365_086, 3 * 1024**4)] == [
        "-",
        "10 B",
        "2.0 KiB",
        "93.8 MiB",
        "3.0 TiB",
    ]
