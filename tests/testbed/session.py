"""What is started once for a test session, however many conftest files import its fixture."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_STARTED = pytest.StashKey[dict[Callable[[], AbstractContextManager[Any]], Any]]()


def for_session(config: pytest.Config, start: Callable[[], AbstractContextManager[T]]) -> T:
    """What `start` gives, started at the first call and closed when the session ends."""
    started = config.stash.setdefault(_STARTED, {})
    if start not in started:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        started[start] = stack.enter_context(start())
    value: T = started[start]
    return value
