"""What the strict JSON reader takes and what it refuses."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import Problem
from shared.http.strict_json import MAX_INTEGER, loads

REFUSED = {
    "empty": b"",
    "blank": b" \n ",
    "cut short": b'{"a":',
    "trailing text": b"{} {}",
    "trailing comma": b"[1,]",
    "comment": b"{} // no",
    "NaN": b"[NaN]",
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "float overflow": b"[1e999]",
    "float overflow with a sign": b"[-1.5E+309]",
    "float overflow of a long number": b"[999999999999999999e291]",
    "float overflow without an exponent": b"[" + b"9" * 310 + b".0]",
    "integer overflow": b"[9223372036854775809]",
    "a very long integer": b"1" * 500_000,
    "duplicate key": b'{"a": 1, "a": 2}',
    "duplicate key spelt differently": b'{"a": 1, "\\u0061": 2}',
    "duplicate key below": b'[{"x": {"a": 1, "b": 0, "a": 1}}]',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'{"a": ["\\uDC00"]}',
    "lone surrogate in a key": b'{"\\ud800": 1}',
    "swapped pair": b'"\\udc00\\ud800"',
    "NUL": b'"a\\u0000b"',
    "NUL in a key": b'{"\\u0000": 1}',
    "raw NUL": b'"\x00"',
    "raw control character": b'"\x01"',
    "Latin-1": b'"\xe9"',
    "UTF-8 surrogate": b'"\xed\xa0\x80"',
    "UTF-16": "{}".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "21 levels": b"[" * 21 + b"]" * 21,
    "21 levels of objects": b'{"a":' * 21 + b"1" + b"}" * 21,
    "endless levels": b"[" * 500_000,
    "endless objects": b'{"a":' * 100_000,
    "NUL at the deepest level": b"[" * 20 + b'"\\u0000"' + b"]" * 20,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(raw: bytes) -> None:
    with pytest.raises(Problem) as caught:
        loads(raw)
    assert caught.value.code == "invalid_json"
    json.dumps(caught.value.body()).encode()


TAKEN: dict[str, tuple[bytes, Any]] = {
    "20 levels": (b"[" * 20 + b"1" + b"]" * 20, None),
    "many brackets side by side": (b"[" + b"[]," * 50 + b"[]]", [[]] * 51),
    "a pair of surrogates": (b'"\\ud83d\\ude00"', "😀"),
    "an escaped backslash before u0000": (b'"\\\\u0000"', "\\u0000"),
    "brackets in a text": (json.dumps("[" * 30).encode(), "[" * 30),
    "the largest integer": (str(MAX_INTEGER).encode(), MAX_INTEGER),
    "a scalar": (b" null ", None),
}


@pytest.mark.parametrize(("raw", "value"), TAKEN.values(), ids=TAKEN.keys())
def test_takes(raw: bytes, value: Any) -> None:
    found = loads(raw)
    assert found == (json.loads(raw) if value is None else value)


def test_a_refusal_never_repeats_a_value() -> None:
    for raw in (b'{"a": hunter2}', b'{"hunter2 with spaces": 1, "hunter2 with spaces": 2}', b'["hunter2", NaN]'):
        with pytest.raises(Problem) as caught:
            loads(raw)
        assert "hunter2" not in json.dumps(caught.value.body())


def _plain(text: str) -> bool:
    return "\x00" not in text


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(_plain)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(value=values, escaped=st.booleans())
def test_reads_back_what_was_written(value: Any, escaped: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=escaped).encode(), max_depth=100) == value


@given(raw=st.binary(max_size=200) | st.text('{}[]",:\\u0dD8e1-. \x00', max_size=60).map(str.encode))
@example(raw=b'{"a":1}')
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        value = loads(raw)
    except Problem as problem:
        refused: str | None = problem.code
    else:
        refused = None
        # What is taken is what another parser reads, and it can be stored as text.
        assert json.loads(raw) == value
        assert b"\x00" not in json.dumps(value, ensure_ascii=False).replace("\\u0000", "\x00").encode()
    assert refused in (None, "invalid_json")
