import pytest

from stepway.runner.api.strict_json import InvalidJson, loads


@pytest.mark.parametrize("text", ["{}", '{"a": [1, 2.5, "x", null, true]}', '"\\u0000"', "1" * 4000, '"\u2028"'])
def test_json_is_read(text: str) -> None:
    import json

    assert loads(text) == loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"NaN", b"[Infinity]", b"[-Infinity]", b"[1e999]", b"1" * 5000, b'"\\ud800"', b'"\xff"', b"\xef\xbb\xbf{}",
        b"[" * 300 + b"]" * 300, b"[" * 1_000_000, b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b'[{"b": {"a": 1, "a": 1}}]', b"{}{}",
        b'"a\nb"',
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_not_clear_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidJson):
        loads(text)


def test_a_name_given_twice_is_named() -> None:
    with pytest.raises(InvalidJson, match="'a' is given twice"):
        loads('{"b": 1, "a": 1, "a": 2}')
