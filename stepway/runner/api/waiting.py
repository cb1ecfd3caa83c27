"""Requests that wait for the end of a run. When the server stops they are told that the run may go on without it."""

import asyncio

from stepway.runner.api.errors import RETRY_SOON, Refused
from stepway.runner.runs import Runs
from stepway.runner.store import Handler


class Waiting:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def finished(self, handler: Handler) -> Handler:
        """The handler at the end of its run. Raises Refused (503), UnknownHandler."""
        if self._stopped.is_set():
            raise self._told(handler)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await self._runs.finished(handler)
        except asyncio.CancelledError:
            if not self._stopped.is_set():
                raise
            task.uncancel()
            raise self._told(handler) from None
        finally:
            self._tasks.discard(task)

    def give_up(self) -> None:
        self._stopped.set()
        for task in list(self._tasks):
            task.cancel()

    def _told(self, handler: Handler) -> Refused:
        told = "This server has stopped, and the run with it"
        if self._runs.store.durable:
            told = f"This server has stopped. GET /handlers/{handler.handler_id} says how the run goes on"
        return Refused(503, told, RETRY_SOON)
