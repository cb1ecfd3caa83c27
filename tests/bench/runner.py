"""The workflow server (`stepway serve`) against the public one, llama-agents-server, in turns, with the same flows.

Both are one process on uvloop and httptools. Stores are compared with their like: memory with memory, and PostgreSQL with
PostgreSQL, each in a database of its own of one server that waits for the disk. The public server's memory keeps the newest
1,000 runs, and is asked for about all of them in many a step of a run; ours keeps all.

After kill -9 the public server leaves alone what is younger than 30 seconds. So both are killed and started twice: at once,
and when the runs are old enough, between which everything else is measured. A quick run leaves out the second time, and the
memory of waiting runs.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import harmonic_mean
from urllib.parse import urlsplit, urlunsplit

import psycopg

from stepway.postgres.embedded import EmbeddedPostgres
from tests.bench import runner_http
from tests.bench.client import in_process
from tests.bench.figures import Figure, percentile
from tests.bench.runner_servers import IDLE, Server

CLIENTS = (1, 16, 64)
GOALS = {"memory": 2.0, "PostgreSQL": 4.0}
OLD_ENOUGH = 31.0  # seconds; the public server resumes what is older than 30
AT_ONCE, IN_TIME = 5.0, 60.0  # seconds from its first answer within which a server resumes runs, or is taken not to
SETTLED = 3.0  # seconds for the release of runs, once they may be
PEER = "public server"


def run(quick: bool) -> list[Figure]:
    rounds, seconds, events, count = (1, 1.5, 1000, 200) if quick else (4, 1.5, 2000, 1000)
    with _postgres() as databases, databases.pair("PostgreSQL") as crashed:
        crash = _Crash(*crashed, count)
        figures = []
        for kind in GOALS:
            with databases.pair(kind) as pair:
                figures += _runs(*pair, kind, rounds, seconds)
                figures += _streams(*pair, kind, rounds, events)
            if not quick:
                with databases.pair(kind) as pair:
                    figures += _waiting(*pair, kind, count)
        return [*figures, crash.at_once(), *([] if quick else [crash.when_old()])]


class _Databases:
    """Makes databases of one server, and servers of workflows on them or without one."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._made = 0

    @contextmanager
    def pair(self, kind: str) -> Iterator[tuple[Server, Server]]:
        """Ours and the public server, each on a new store."""
        with ExitStack() as stack:
            pair = []
            for ours in (True, False):
                self._made += 1
                folder = self._folder / str(self._made)
                folder.mkdir()
                url = None if kind == "memory" else self._database(f"bench_{self._made}")
                server = Server(folder, ours=ours, url=url)
                stack.callback(server.kill)
                pair.append(server)
            yield pair[0], pair[1]

    def _database(self, name: str) -> str:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))


@contextmanager
def _postgres() -> Iterator[_Databases]:
    with tempfile.TemporaryDirectory(prefix="stepway-bench-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            yield _Databases(server.start(), Path(folder))
        finally:
            server.stop()


def _runs(ours: Server, peer: Server, kind: str, rounds: int, seconds: float) -> list[Figure]:
    """A client has its next run when the one before has ended."""
    rates: dict[tuple[int, bool], list[float]] = {}
    taken: dict[tuple[int, bool], list[float]] = {}
    for server in (ours, peer):
        in_process(runner_http.runs, server.host, CLIENTS[-1], 1.0)  # warm: connections, plans, imports
    for turn in range(rounds):
        for clients in CLIENTS:
            for server in (ours, peer) if turn % 2 == 0 else (peer, ours):
                rate, times = in_process(runner_http.runs, server.host, clients, seconds)
                rates.setdefault((clients, server is ours), []).append(rate)
                taken.setdefault((clients, server is ours), []).extend(times)
    figures = []
    for clients in CLIENTS:
        mine, theirs = (harmonic_mean(rates[clients, one]) for one in (True, False))
        p95s = [percentile(taken[clients, one], 0.95) * 1000 for one in (True, False)]
        figures.append(
            Figure(
                f"runs of one step, {kind}, {clients} at a time", mine, "1/s", theirs, f"1/s {PEER}",
                at_least=GOALS[kind], note=f"p95 {p95s[0]:.1f} ms, {p95s[1]:.1f} ms",
            )
        )  # fmt: skip
    return figures


def _streams(ours: Server, peer: Server, kind: str, rounds: int, events: int) -> list[Figure]:
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(rounds):
        for server in (ours, peer):
            taken[server is ours].append(in_process(runner_http.stream, server.host, events))
    mine, theirs = (
        [rounds * events / sum(one[reading] for one in taken[which]) for reading in (0, 1)] for which in (True, False)
    )
    return [
        Figure(f"events of a stream, {kind}, {how}", mine[at], "1/s", theirs[at], f"1/s {PEER}")
        for at, how in enumerate(("as they come", "read again"))
    ]


def _waiting(ours: Server, peer: Server, kind: str, count: int) -> list[Figure]:
    """Of the second so many: what a process has once needed for the first stays with it."""
    sizes = []
    for _ in range(2):
        for server in (ours, peer):
            in_process(runner_http.begin, server.host, "person", count)
        time.sleep(IDLE + SETTLED)
        sizes.append([server.resident() for server in (ours, peer)])
    mine, theirs = ((after - before) * 1000 / count for before, after in zip(*sizes, strict=True))
    return [Figure(f"memory of 1,000 runs that wait, {kind}", mine, "MB", theirs, f"MB {PEER}", by="difference")]


class _Crash:
    """Runs that are in their second step when their servers are killed, and how long they take to be there again.

    Counted from the start of the new process, as it takes the place of the one that is gone.
    """

    def __init__(self, ours: Server, peer: Server, count: int) -> None:
        self._ours, self._peer = ours, peer
        self._count = count
        for server in (ours, peer):
            in_process(runner_http.begin, server.host, "long", count)
            if not server.wait_for_steps(count, IN_TIME):
                raise RuntimeError(f"{server.name}: {server.steps_seen()} of {count} runs have begun")
        self._began = time.monotonic()
        self._at_once = [self._again(ours, IN_TIME), self._again(peer, AT_ONCE)]

    def at_once(self) -> Figure:
        (mine, resumed), (_, theirs) = self._at_once
        note = f"ours in {mine:.1f} s; theirs after {AT_ONCE:g} s"
        return Figure(
            f"runs resumed at once after kill -9, of {self._count}",
            resumed,
            "",
            theirs,
            PEER,
            by="difference",
            note=note,
        )

    def when_old(self) -> Figure:
        """Waits until the runs are old enough for the public server."""
        time.sleep(max(0.0, self._began + OLD_ENOUGH - time.monotonic()))
        (mine, mine_resumed), (theirs, theirs_resumed) = (self._again(one, IN_TIME) for one in (self._ours, self._peer))
        note = f"{mine_resumed} and {theirs_resumed} of {self._count}"
        return Figure("resuming them when they are old, the start included", mine, "s", theirs, f"s {PEER}", note=note)

    def _again(self, server: Server, seconds: float) -> tuple[float, int]:
        """Kill it (if it runs), start it, and kill it again: seconds until all runs were there, or it took too long."""
        server.kill()
        began = time.monotonic()
        server.start()
        server.wait_for_steps(self._count, seconds)
        taken, resumed = time.monotonic() - began, server.steps_seen()
        server.kill()
        return taken, resumed
