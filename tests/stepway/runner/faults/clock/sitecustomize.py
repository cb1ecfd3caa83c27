"""A stand-in for a wall clock that is set: in a Python that has this folder on its path, `time.time` and `datetime.now` go
wrong by the seconds that the file `CLOCK_OFF` holds now. No test can set the machine's own clock.
"""

import datetime
import os
import time
from pathlib import Path
from typing import Any

_real_time, _real = time.time, datetime.datetime
_path = Path(os.environ["CLOCK_OFF"])


def _off() -> float:
    return float(_path.read_text() or 0)


class _Kind(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, _real)


class _Jumping(datetime.datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _real.fromtimestamp(_real_time() + _off(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _real.fromtimestamp(_real_time() + _off(), datetime.UTC).replace(tzinfo=None)


time.time = lambda: _real_time() + _off()
time.time_ns = lambda: int(time.time() * 1e9)
datetime.datetime = _Jumping  # type: ignore[misc]
