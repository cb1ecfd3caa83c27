import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cluster.runtimes.kubernetes.quantities import thousandths, whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128Gi", 128 << 30),
        ("1G", 10**9),
        ("1.5Ki", 1536),
        ("100", 100),
        ("1e3", 1000),
        ("12E", 9_223_372_036_854_775),
        ("2500m", 2),
        ("", 0),
        ("-5", 0),
        ("1e99", 9_223_372_036_854_775),
        ("1e999999999", 0),
        ("٣", 0),
        ("5 ", 0),
        (None, 0),
        (5, 0),
    ],
)
def test_whole(text: object, expected: int) -> None:
    assert whole(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("63500m", 63_500), ("64", 64_000), ("0.5", 500), ("250000000n", 250)])
def test_thousandths(text: str, expected: int) -> None:
    assert thousandths(text) == expected


@given(st.text(alphabet="0123456789.eE+-mkKMGTPEinu", max_size=40))
def test_any_text_is_a_bounded_number(text: str) -> None:
    assert 0 <= whole(text) <= thousandths(text) < 2**63
