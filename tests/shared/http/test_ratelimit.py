"""Token buckets, by a clock of the test's own."""

import pytest

from shared.errors import Problem
from shared.http.problems import ProblemResponse
from shared.http.ratelimit import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _limiter(clock: Clock, max_keys: int = 100) -> RateLimiter:
    return RateLimiter(10, 60, name="api", max_keys=max_keys, clock=clock)


def test_headers_count_down() -> None:
    limiter = _limiter(Clock())
    assert limiter.take("a") == {"RateLimit-Policy": '"api";q=10;w=60', "RateLimit": '"api";r=9;t=6'}
    assert limiter.take("a")["RateLimit"] == '"api";r=8;t=12'
    assert limiter.take("b")["RateLimit"] == '"api";r=9;t=6'


def test_too_many_wait_for_the_next_token() -> None:
    clock = Clock()
    limiter = _limiter(clock)
    for _ in range(10):
        limiter.take("a")
    clock.now += 2
    with pytest.raises(Problem) as caught:
        limiter.take("a")
    answer = ProblemResponse(caught.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "4")
    assert answer.headers["ratelimit"] == '"api";r=0;t=58'
    clock.now += 4
    assert limiter.take("a")["RateLimit"].startswith('"api";r=0;')


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    limiter = _limiter(clock)
    for _ in range(10):
        limiter.take("a")
    for _ in range(50):
        with pytest.raises(Problem):
            limiter.take("a")
    clock.now += 6
    limiter.take("a")


def test_a_full_bucket_grows_no_further() -> None:
    clock = Clock()
    limiter = _limiter(clock)
    limiter.take("a")
    clock.now += 10_000
    assert limiter.take("a")["RateLimit"] == '"api";r=9;t=6'


def test_memory_is_bounded() -> None:
    limiter = _limiter(Clock(), max_keys=3)
    for key in "abcd":
        limiter.take(key)
    assert len(limiter._buckets) == 3
    assert limiter.take("d")["RateLimit"].startswith('"api";r=8;')
