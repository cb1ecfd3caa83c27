"""A server of its own for tests of crashes: claims and makes runs, and writes to them until it is killed.

`python -m tests.stepway.runner.store.postgres.child URL LOG`. Each line of the log says what was acknowledged: a run and
how many ticks it has, or that runs were lost. An entry has two ticks and two events, numbered alike.
"""

import asyncio
import os
import sys
import uuid

from stepway.runner.store import Entry, Event, Fenced, NewRun, Saved, StoreUnavailable
from stepway.runner.store.postgres import PostgresStore

RUNS = 8


class Child:
    def __init__(self, url: str, log: str) -> None:
        self._store = PostgresStore(url)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self._store.start(lambda: self.say("lost"))
        self.say("ready")
        while True:
            try:
                await self._turn()
            except StoreUnavailable:
                await asyncio.sleep(0.1)

    async def _turn(self) -> None:
        for saved in await self._store.claim({"flow": 100}):
            self._spawn(saved.handler.run_id, saved)
        while len(self._tasks) < RUNS:
            run_id = uuid.uuid4().hex
            await self._store.create(NewRun(f"h{run_id}", "flow", run_id, "{}"))
            self.say(f"{run_id} 0")
            self._spawn(run_id, None)
        await self._store.due()

    def say(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())

    def _spawn(self, run_id: str, saved: Saved | None) -> None:
        at = 0
        if saved is not None:
            at = len(saved.ticks)
            assert saved.next_event == at, (saved.next_event, at)
        task = asyncio.create_task(self._write(run_id, at))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, run_id: str, at: int) -> None:
        while True:
            events = [Event(n, False, str(n)) for n in (at, at + 1)]
            try:
                await self._store.append(run_id, Entry(at, [str(at), str(at + 1)], events))
            except Fenced:
                return
            at += 2
            self.say(f"{run_id} {at}")


if __name__ == "__main__":
    asyncio.run(Child(*sys.argv[1:]).run())
