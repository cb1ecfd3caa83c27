"""Token buckets in the process, one per key, with the headers of the IETF's draft (RateLimit, RateLimit-Policy).

Each process counts for itself: with N replicas a client may have up to N times the quota.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from shared.errors import Problem


class RateLimiter:
    """`quota` requests per `window` seconds and key, refilled evenly; all of it may come at once.

    The least recently used keys are forgotten above `max_keys`, so that memory stays bounded.
    """

    def __init__(
        self,
        quota: int,
        window: float,
        *,
        name: str = "default",
        max_keys: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quota = quota
        self._window = window
        self._rate = quota / window
        self._name = name
        self._max_keys = max_keys
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key: tokens, at what time
        self._policy = f'"{name}";q={quota};w={math.ceil(window)}'

    def take(self, key: str, cost: int = 1) -> dict[str, str]:
        """Counts one request and returns the headers for its answer. Problem `rate_limited` (429) with Retry-After."""
        now = self._clock()
        tokens, since = self._buckets.get(key, (float(self._quota), now))
        tokens = min(float(self._quota), tokens + (now - since) * self._rate)
        granted = tokens >= cost
        if granted:
            tokens -= cost
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        headers = self._headers(tokens)
        if granted:
            return headers
        wait = self._seconds(cost - tokens)
        raise Problem(
            "rate_limited",
            f"At most {self._quota} requests in {self._window:g} s; wait {wait} s.",
            headers={**headers, "Retry-After": str(max(1, wait))},
        )

    def _headers(self, tokens: float) -> dict[str, str]:
        full_in = self._seconds(self._quota - tokens)
        return {
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"{self._name}";r={math.floor(tokens)};t={full_in}',
        }

    def _seconds(self, tokens: float) -> int:
        """Until so many tokens have come, in whole seconds; the rounding keeps 4.0000000001 from becoming 5."""
        return math.ceil(round(tokens / self._rate, 6))
