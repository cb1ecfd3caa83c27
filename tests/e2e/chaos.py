"""Bounded chaos: many jobs that people, bots and operators ask for while what does them is killed and started again.

`tests.e2e.bots` asks. At the end all jobs have ended in a state that is true, each once; every sequence of events is without
a gap; and nothing is left over.
"""

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.bots import PATIENCE, Asker, Bot, Json, Operator, Tally
from tests.e2e.instance import until
from tests.testbed.cluster import Cluster

PAUSES = (0.1, 1.0)  # seconds between two kills of the first half
LATER_PAUSES = (0.5, 5.0)  # of the second half, which is for the deployments
AWAY = (0.0, 1.5)  # seconds until what was killed is started again
LATE = 5.0  # seconds after the last kill, within which something may still end because of it

BOTS = 4
MOST = 8  # times as many rounds as are asked for, where the kills take longer
CALM = 3.0  # seconds that a bot waits before each round that nobody asked for


@dataclass(frozen=True, slots=True)
class Victim:
    """Something that is killed, and then started again and waited for. `ended`: it may end by itself, and has."""

    name: str
    kill: Callable[[], None]
    start: Callable[[], None]
    ended: Callable[[], bool] = lambda: False
    ready: Callable[[], bool] = lambda: True


class Chaos(threading.Thread):
    """Kills one victim after the other, until it is told to stop; then all of them are there. What ends by itself meanwhile
    is started again, as whatever runs it would do. The second half of the kills begins with `later`.

    The thread lives on to the end of the process, for what it has started ends with it.
    """

    def __init__(self, victims: Sequence[Victim], seed: int, kills: int, later: threading.Event) -> None:
        super().__init__(name="chaos", daemon=True)
        self._victims = victims
        self._random = random.Random(seed)
        self._kills = kills
        self._later = later
        self.enough = threading.Event()
        self.over = threading.Event()  # no more is killed
        self._gone = threading.Event()
        self.killed: list[str] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while len(self.killed) < self._kills and not self._pause():
                self._hit(self._random.choice(self._victims))
            self.over.set()
            last = time.monotonic()
            while not self._rest(0.0) or time.monotonic() < last + LATE:
                time.sleep(0.2)
        except BaseException as fault:
            say(f"{type(fault).__name__}: {fault}"[:2000])
            self.fault = fault
            self.over.set()
        self._gone.set()
        threading.Event().wait()

    def _pause(self) -> bool:
        """Whether it is enough."""
        if len(self.killed) < self._kills // 2:
            return self._rest(self._random.uniform(*PAUSES))
        while not self._later.is_set() and not self._rest(0.2):
            pass
        return self._rest(self._random.uniform(*LATER_PAUSES))

    def _hit(self, victim: Victim) -> None:
        victim.kill()
        self.killed.append(victim.name)
        say(f"killed {victim.name}")  # at once, for whoever reads why it failed
        self._rest(self._random.uniform(*AWAY), victim)
        victim.start()

        def back() -> bool:
            self._rest(0.0)
            return victim.ready()

        until(back, what=f"{victim.name} to be back")

    def _rest(self, seconds: float, killed: Victim | None = None) -> bool:
        """Whether it is enough."""
        for one in self._victims:
            if one is not killed and one.ended():
                say(f"{one.name} has ended by itself")
                one.start()
        return self.enough.wait(seconds)

    def end(self) -> None:
        self.enough.set()
        assert self._gone.wait(PATIENCE), "what was killed does not come back"
        if self.fault is not None:
            raise self.fault


def say(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%X')} {what}\n")


def run(
    asker: Asker, victims: Sequence[Victim], uri: Callable[[int], str], *, seed: int, rounds: int, kills: int,
    model_file: Path, cluster: Cluster | None = None,
) -> tuple[Tally, list[str]]:  # fmt: skip
    """All of it at once; returns when all jobs have ended and all victims are back."""
    tally = Tally()
    chaos = Chaos(victims, seed, kills, tally.deploying)
    numbers = itertools.count()

    def work() -> None:
        """At least `rounds` by all together, and as long as something is being killed."""
        while (number := next(numbers)) < rounds or (number < MOST * rounds and not chaos.over.wait(CALM)):
            Bot(asker, tally, seed * 1000 + number, uri).round(number)

    chaos.start()
    try:
        with ThreadPoolExecutor(max_workers=BOTS) as pool:
            bots = [pool.submit(work) for _ in range(BOTS)]
            Operator(asker, tally, seed, model_file, cluster).rounds(max(rounds // 10, 1))
            for one in bots:
                one.result()
    finally:
        chaos.end()
    return tally, chaos.killed


def check(asker: Asker, tally: Tally) -> None:
    """Every job ended once, in a state that is true; every sequence of events is whole."""
    stepway = asker.stepway
    states = dict(stepway.sql("SELECT id::text, state FROM jobs.job"))
    assert tally.jobs <= states.keys()
    assert set(states.values()) <= {"succeeded", "cancelled"}
    assert stepway.sql("SELECT job_id FROM jobs.event WHERE job_id IS NOT NULL GROUP BY job_id "
                       "HAVING count(*) <> max(seq) OR min(seq) <> 1") == []  # fmt: skip
    assert stepway.sql("SELECT topic FROM jobs.event WHERE topic IS NOT NULL GROUP BY topic "
                       "HAVING count(*) <> max(topic_seq) OR min(topic_seq) <> 1") == []  # fmt: skip
    ends = stepway.sql("SELECT job_id, count(*) FROM jobs.event WHERE type = 'job' "
                       "AND data->>'state' IN ('succeeded', 'cancelled') GROUP BY job_id HAVING count(*) <> 1")  # fmt: skip
    assert ends == []
    assert stepway.sql("SELECT id FROM jobs.job WHERE worker IS NOT NULL") == []
    models = {one["id"] for one in _all(asker, "/models?state=active") if one["provider_type"] in ("url", "disk")}
    assert models == tally.kept
    assert _all(asker, "/endpoints") == []
    assert [one for one in _all(asker, "/clusters") if one["kind"] != "local"] == []


def empty(asker: Asker, tally: Tally, objects: Callable[[], list[str]]) -> None:
    """Delete what is there: then no object and no upload is left, once what is unused was looked for."""
    for model in tally.kept:
        answer = asker.ask("DELETE", f"/models/{model}")
        assert answer.status_code in (200, 202, 204), answer.text
    until(lambda: not objects(), seconds=PATIENCE, what="the objects to go")


def _all(asker: Asker, path: str) -> list[Json]:
    found: list[Json] = []
    joint = "&" if "?" in path else "?"
    query = f"{joint}limit=100"
    while True:
        page = asker.get(path + query)
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        query = f"{joint}limit=100&cursor={page['next_cursor']}"
