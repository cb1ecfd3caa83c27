"""Files of flows: what is read, what is refused, and that what is written is read as the same."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepway.cli.flow_files import Unreadable, as_yaml, files_of, mapping, write
from stepway.cli.problems import Usage

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")) | st.sampled_from("\n\t")) | st.text(
    st.sampled_from(string.digits + "+-.eE:_~#*&!yYnNoftrue"), max_size=6
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read_as_the_same(body: dict[str, Any]) -> None:
    assert mapping(as_yaml(body).encode()) == body


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("on", "on"), ("No", "No"), ("true", True), ("null", None), ("", None), ("~", None),
        ("012", "012"), ("0x1f", "0x1f"), ("1_000", "1_000"), ("12:30", "12:30"), ("2026-01-02", "2026-01-02"),
        ("1e3", 1000.0), ("-2", -2), ("0.5", 0.5), (".inf", ".inf"), ("=", "="), ("'true'", "true"),
    ],
)  # fmt: skip
def test_words_that_other_yaml_reads_as_something_else(text: str, value: object) -> None:
    found = mapping(f"a: {text}\n".encode())["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1\nb: *x\n", "line 1", "aliases"),
        ("a: !!python/object/apply:os.system [id]\n", "line 1", "Tags"),
        ("a: 1\nb: 2\na: 3\n", "line 3", "twice"),
        ("a:\n  1: x\n", "line 2", "quote it"),
        ("a:\n  <<: {b: 1}\n  '<<': 2\n", "line 3", "twice"),
        ("a: [1\nb: 2\n", "line 2", "not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2", "not YAML"),
        ("- a\n", "", "one object"),
        ("", "", "one object"),
        ("a: 1e999\n", "", "too large"),
        ("a: " + "[" * 5000, "", "nested too deeply"),
        ("a: \x00\n", "", "not YAML"),
    ],
)
def test_what_is_not_plain_data_is_refused_at_its_line(text: str, place: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words) as refused:
        mapping(text.encode())
    assert refused.value.place == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "twice"), ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "too large"), ("[1]", "one object"),
        ('{"a": }', "not JSON"), ('{"a": ' + "[" * 100_000, "too deeply"), ('{"a": ' + "1" * 5000 + "}", "read"),
    ],
)  # fmt: skip
def test_json_is_read_as_strictly(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        mapping(text.encode(), is_json=True)


def test_sizes_and_encodings() -> None:
    with pytest.raises(Unreadable, match="1 MiB"):
        mapping(b"a: " + b"x" * 1024 * 1024)
    with pytest.raises(Unreadable, match="UTF-8"):
        mapping(b"a: \xff\n")


def test_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "notes.md"):
        (tmp_path / name).write_text("{}")
    assert [one.name for one in files_of([tmp_path, tmp_path / "b.yaml"])] == ["a.json", "b.yaml"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Usage, match="no files"):
        files_of([empty])


def test_names_of_files_stay_in_their_folder_and_apart(tmp_path: Path) -> None:
    taken: set[str] = set()
    names = ("../../etc/x", "Über Größe", "über größe", "!!!")
    files = [write(tmp_path, name, {"name": name}, taken) for name in names]
    assert [one.name for one in files] == ["etc-x.yaml", "ber-gr-e.yaml", "ber-gr-e-2.yaml", "flow.yaml"]
    assert all(one.parent == tmp_path for one in files)
    assert [mapping(one.read_bytes())["name"] for one in files] == list(names)
    assert files[0].read_text().startswith("# ")
