"""What was found out a moment ago: those who ask together share one look at what is large and changes seldom."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The answer of the latest look, for `seconds` from its beginning. Belongs to one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._found: tuple[float, T] | None = None
        self._looking = asyncio.Lock()

    async def get(self, look: Callable[[], Awaitable[T]]) -> T:
        """Who asks while another looks waits for that answer. A look that fails is its caller's alone."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if self._found is None or now - self._found[0] >= self._seconds:
                self._found = (now, await look())
            return self._found[1]
