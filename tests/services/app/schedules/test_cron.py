"""When a cron expression comes next, also on the days on which clocks are changed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import pytest

from services.app.schedules.cron import next_after, time_zones


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(cron: str, timezone: str, moment: datetime) -> Iterator[str]:
    """As the loop finds them: each after the one before."""
    found = next_after(cron, timezone, moment)
    while found is not None:
        yield found.strftime("%m-%d %H:%M")
        found = next_after(cron, timezone, found)


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        ("*/20 * * * *", "UTC", "2026-01-01T00:05", ["01-01 00:20", "01-01 00:40", "01-01 01:00"]),
        ("0 9 * * 1-5", "Europe/Berlin", "2026-01-02T12:00", ["01-05 08:00", "01-06 08:00", "01-07 08:00"]),
        ("30 14 29 2 *", "UTC", "2026-01-01T00:00", ["02-29 14:30"]),
        # Europe/Berlin, 29 March 2026: 02:00 becomes 03:00 (01:00 UTC)
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("30 3 * * *", "Europe/Berlin", "2026-03-28T00:00", ["03-28 02:30", "03-29 01:30", "03-30 01:30"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:15", ["03-29 00:30", "03-29 01:00", "03-29 01:30"]),
        # 25 October 2026: 03:00 becomes 02:00 (01:00 UTC)
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T00:00", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("45 2 * * *", "Europe/Berlin", "2026-10-25T01:20", ["10-26 01:45", "10-27 01:45"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:10",
            ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-24T23:30", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        ("0 12 * * *", "America/New_York", "2026-03-07T20:00", ["03-08 16:00", "03-09 16:00"]),
    ],
)  # fmt: skip
def test_times(cron: str, timezone: str, after: str, expected: list[str]) -> None:
    assert timezone in time_zones()
    assert list(islice(times(cron, timezone, at(after)), len(expected))) == expected


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "x * * * *", "0 0 31 2 *", "@daily", "*/0 * * * *",
     "5-1 * * * *", "* * * * *\n", "1" * 200 + " * * * *", "٣ * * * *"],
)  # fmt: skip
def test_what_is_no_expression(cron: str) -> None:
    with pytest.raises(ValueError, match=r"must have five fields|is no cron expression"):
        next_after(cron, "UTC", at("2026-01-01T00:00"))


def test_what_never_comes() -> None:
    assert next_after("0 0 * 2 1#5", "UTC", at("2026-02-01T00:00")) == at("2044-02-29T00:00")
    assert next_after("0 0 30 4,2 2#5", "UTC", at("2026-01-01T00:00")) is not None
