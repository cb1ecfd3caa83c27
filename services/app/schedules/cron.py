"""When a cron expression comes next, in a time zone. Five fields, as cron has them.

Where a day has a gap (spring), what would be in it comes right after it; where an hour comes twice (autumn), what is set
for a time in it comes the first time, and what goes by the minute or the hour goes on through both.
"""

import re
from datetime import UTC, datetime
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

MAX_LENGTH = 100
_FIELDS = re.compile(r"[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}", re.ASCII)


def next_after(cron: str, timezone: str, moment: datetime) -> datetime | None:
    """The first time after a moment, in UTC; None when it never comes. ValueError for what is no cron expression."""
    if len(cron) > MAX_LENGTH or _FIELDS.fullmatch(cron) is None:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    try:
        times = CronSim(cron, moment.astimezone(ZoneInfo(timezone)))
        # A time of day is looked for in local time, where the second one of an hour looks like the first.
        return next((found for one in times if (found := one.astimezone(UTC)) > moment), None)
    except CronSimError as error:
        raise ValueError(f"is no cron expression: {str(error)[:1].lower()}{str(error)[1:]}") from None


@cache
def time_zones() -> frozenset[str]:
    return frozenset(available_timezones())
