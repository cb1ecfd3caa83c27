"""One transaction of the writer: all that was pending, in few statements, each with arrays.

Everything is sent at once, and the results are known before the commit: only the commit itself can have an outcome that is
not known. Rows of handlers are locked in one order by all servers, so that batches do not end in deadlocks.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection, AsyncCursor

from stepway.runner.store import AlreadyOver, AlreadyRunning, End, Fenced, Sent, UnknownHandler
from stepway.runner.store.postgres.values import (
    HANDLER,
    Bigs,
    Blobs,
    Texts,
    blob,
    handler,
    name,
)
from stepway.runner.store.postgres.work import Append, Create, Release, Send, Undo, Work

# Fails with a division by zero when this server's row is gone, that is, when others took it for dead.
FENCE = """
WITH own AS (UPDATE stepway_runner.server SET written = %s WHERE id = %s RETURNING id) SELECT 1 / count(*) FROM own
"""
LOCK_ROWS = """
SELECT handler_id, run_id, status FROM stepway_runner.handler WHERE handler_id = ANY(%s) ORDER BY handler_id FOR NO KEY UPDATE
"""
FORGET_EVENTS = """
DELETE FROM stepway_runner.event WHERE run_id IN (
    SELECT run_id FROM stepway_runner.handler WHERE handler_id = ANY(%s) AND status <> 'running')
"""
CREATE = f"""
INSERT INTO stepway_runner.handler AS h
    (handler_id, run_id, workflow_name, status, start, context, server_id, wake_at, started_at, updated_at)
SELECT n.handler_id, n.run_id, n.workflow_name, 'running', n.start, n.context, CASE WHEN n.owned = 1 THEN %s::integer END,
    CASE WHEN n.owned = 0 THEN '-infinity'::timestamptz END, now(), now()
FROM unnest(%s, %s, %s, %s, %s, %s)
    WITH ORDINALITY AS n (handler_id, run_id, workflow_name, start, context, owned, place) ORDER BY n.place
ON CONFLICT (handler_id) DO UPDATE SET
    number = DEFAULT, run_id = excluded.run_id, workflow_name = excluded.workflow_name, status = 'running', error = NULL,
    result = NULL, left_context = NULL, start = excluded.start, context = excluded.context, snapshot = NULL, first_tick = 0,
    state = NULL, started_at = excluded.started_at, updated_at = excluded.updated_at, completed_at = NULL,
    server_id = excluded.server_id, wake_at = excluded.wake_at, released_at = NULL
WHERE h.status <> 'running'
RETURNING {HANDLER}
"""
GO_ON = """
UPDATE stepway_runner.handler h SET updated_at = now(), state = coalesce(g.state, h.state),
    snapshot = coalesce(g.snapshot, h.snapshot), first_tick = coalesce(g.first_tick, h.first_tick)
FROM unnest(%s, %s, %s, %s) AS g (run_id, state, snapshot, first_tick)
WHERE h.run_id = g.run_id AND h.server_id = %s AND h.status = 'running' RETURNING h.run_id
"""
END = """
UPDATE stepway_runner.handler h SET updated_at = now(), completed_at = now(), status = g.status, error = g.error,
    result = g.result, left_context = g.left_context, start = NULL, context = NULL, snapshot = NULL, state = NULL,
    server_id = NULL, wake_at = NULL, released_at = NULL
FROM unnest(%s, %s, %s, %s, %s) AS g (run_id, status, error, result, left_context)
WHERE h.run_id = g.run_id AND h.server_id = %s AND h.status = 'running' RETURNING h.run_id
"""
ADD_TICKS = "INSERT INTO stepway_runner.journal (run_id, seq, tick) SELECT * FROM unnest(%s, %s, %s)"
ADD_EVENTS = """
INSERT INTO stepway_runner.event (run_id, seq, internal, data)
SELECT e.run_id, e.seq, e.internal = 1, e.data FROM unnest(%s, %s, %s, %s) AS e (run_id, seq, internal, data)
"""
CUT = """
DELETE FROM stepway_runner.journal j USING unnest(%s, %s) AS c (run_id, below)
WHERE j.run_id = c.run_id AND j.seq < c.below
"""
FORGET_TICKS = "DELETE FROM stepway_runner.journal WHERE run_id = ANY(%s)"
FORGET_ITEMS = "DELETE FROM stepway_runner.inbox WHERE run_id = ANY(%s)"
ACK = "DELETE FROM stepway_runner.inbox WHERE id = ANY(%s)"
ADDRESSEES = "SELECT handler_id, run_id, status, server_id FROM stepway_runner.handler WHERE handler_id = ANY(%s)"
SEND = """
INSERT INTO stepway_runner.inbox (run_id, event, step)
SELECT h.run_id, s.event, s.step
FROM unnest(%s, %s, %s) WITH ORDINALITY AS s (handler_id, event, step, place)
JOIN stepway_runner.handler h ON h.handler_id = s.handler_id AND h.status = 'running' ORDER BY s.place
RETURNING id, run_id
"""
WAKE = """
UPDATE stepway_runner.handler SET wake_at = '-infinity'
WHERE handler_id = ANY(%s) AND status = 'running' AND server_id IS NULL AND (wake_at IS NULL OR wake_at > now())
"""
RELEASE = """
UPDATE stepway_runner.handler h SET server_id = NULL, released_at = now(),
    wake_at = CASE WHEN EXISTS (SELECT 1 FROM stepway_runner.inbox i WHERE i.run_id = h.run_id) THEN '-infinity'
        ELSE now() + g.microseconds * interval '1 microsecond' END
FROM unnest(%s, %s) AS g (run_id, microseconds) WHERE h.run_id = g.run_id AND h.server_id = %s AND h.status = 'running'
RETURNING h.run_id, CASE WHEN isfinite(h.wake_at) THEN extract(epoch FROM h.wake_at - now())::float8
    WHEN h.wake_at IS NOT NULL THEN 0 END
"""
UNDO = "DELETE FROM stepway_runner.handler WHERE run_id = ANY(%s)"
YEAR = 366 * 86400


@dataclass(slots=True)
class _Turn:
    """All entries of one run in this batch, as one."""

    ticks: list[tuple[int, bytes]] = field(default_factory=list)
    events: list[tuple[int, bool, bytes]] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    state: str | None = None
    snapshot: str | None = None
    first_tick: int | None = None
    end: End | None = None
    result: bytes | None = None
    cut: bool = False

    def add(self, work: Append) -> None:
        entry = work.entry
        if entry.snapshot is not None:
            self.ticks.clear()
            self.snapshot, self.first_tick = entry.snapshot, entry.tick_seq
        self.ticks += work.ticks
        self.events += work.events
        self.acks += entry.acks
        self.state = entry.state if entry.state is not None else self.state
        self.cut |= work.cut
        if entry.end is not None:
            self.end, self.result = entry.end, work.result
            self.ticks.clear()


class Batch:
    """`results` after `write`: one for each work; an exception's instance is how that one failed."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.works = works
        self.results: dict[Work, Any] = {}
        self.restarted: list[str] = []  # run_ids that their handler has no more
        self._creates = [work for work in works if isinstance(work, Create)]
        begun = [work.run for work in self._creates if work.begun]  # of these there is no row that others could see
        self._new, self._new_runs = {run.handler_id for run in begun}, {run.run_id for run in begun}
        self._sends = [work for work in works if isinstance(work, Send)]
        self._releases = [work for work in works if isinstance(work, Release)]
        self._undone = [work for work in works if isinstance(work, Undo)]
        self._appends = [work for work in works if isinstance(work, Append)]
        self._turns: dict[str, _Turn] = defaultdict(_Turn)
        for work in self._appends:
            self._turns[work.run_id].add(work)

    async def write(self, connection: AsyncConnection, server_id: int, number: int) -> None:
        """All statements but the commit. Raises psycopg.Error, DivisionByZero when this server is fenced."""
        answers: dict[str, list[AsyncCursor]] = defaultdict(list)

        async def ask(key: str, statement: Any, *values: Any) -> None:
            answers[key].append(await connection.execute(statement, values, binary=True))

        async with connection.pipeline():
            await connection.execute("BEGIN")
            await connection.execute(FENCE, [number, server_id])
            if known := self._handler_ids() - self._new:
                await ask("rows", LOCK_ROWS, Texts(sorted(known)))
            if self._creates:
                await self._create(ask, server_id)
            if self._turns:
                await self._go_on(ask, server_id)
            if self._sends:
                await self._send(ask)
            if self._releases:
                await ask(
                    "released", RELEASE, Texts([one.run_id for one in self._releases]),
                    Bigs([_microseconds(one.wake_after) for one in self._releases]), server_id,
                )  # fmt: skip
            if self._undone:
                ids = Texts([one.run_id for one in self._undone])
                for statement in (UNDO, FORGET_TICKS, FORGET_ITEMS):
                    await ask("undone", statement, ids)
                await ask("undone", "DELETE FROM stepway_runner.event WHERE run_id = ANY(%s)", ids)
        await self._collect(
            {key: [await one.fetchall() for one in cursors if one.description] for key, cursors in answers.items()}
        )

    def _handler_ids(self) -> set[str]:
        ids = {one.run.handler_id for one in self._creates}
        ids.update(one.handler_id for one in self._appends)
        ids.update(one.handler_id for one in self._sends)
        ids.update(one.handler_id for one in self._releases)
        return ids

    async def _create(self, ask: Any, server_id: int) -> None:
        runs = [one.run for one in self._creates]
        ids = Texts([one.handler_id for one in runs])
        if not all(one.begun for one in self._creates):
            await ask("forgotten", FORGET_EVENTS, ids)
        await ask(
            "created", CREATE, server_id, ids, Texts([one.run_id for one in runs]),
            Texts([one.workflow_name for one in runs]), Blobs([blob(one.start) for one in runs]),
            Blobs([blob(one.context) for one in runs]), Bigs([one.owned for one in runs]),
        )  # fmt: skip

    async def _go_on(self, ask: Any, server_id: int) -> None:
        going = {run_id: turn for run_id, turn in self._turns.items() if turn.end is None}
        ended = {run_id: turn for run_id, turn in self._turns.items() if turn.end is not None}
        if going:
            turns = going.values()
            await ask(
                "own", GO_ON, Texts(list(going)), Blobs([blob(one.state) for one in turns]),
                Blobs([blob(one.snapshot) for one in turns]), Bigs([one.first_tick for one in turns]), server_id,
            )  # fmt: skip
        if ended:
            ends = [turn.end for turn in ended.values() if turn.end is not None]
            await ask(
                "own", END, Texts(list(ended)), Texts([one.status for one in ends]), Texts([one.error for one in ends]),
                Blobs([one.result for one in ended.values()]), Blobs([blob(one.context) for one in ends]), server_id,
            )  # fmt: skip
            used = Texts([run_id for run_id, turn in ended.items() if turn.cut])
            if used.items:
                await ask("gone", FORGET_TICKS, used)
            if known := [run_id for run_id in ended if run_id not in self._new_runs]:
                await ask("gone", FORGET_ITEMS, Texts(known))
        await self._add_rows(ask)

    async def _add_rows(self, ask: Any) -> None:
        ticks = [(run_id, *tick) for run_id, turn in self._turns.items() for tick in turn.ticks]
        if ticks:
            runs, numbers, data = zip(*ticks, strict=True)
            await ask("added", ADD_TICKS, Texts(runs), Bigs(numbers), Blobs(data))
        events = [(run_id, *event) for run_id, turn in self._turns.items() for event in turn.events]
        if events:
            runs, numbers, internal, data = zip(*events, strict=True)
            await ask("added", ADD_EVENTS, Texts(runs), Bigs(numbers), Bigs(internal), Blobs(data))
        acks = [ack for turn in self._turns.values() if turn.end is None for ack in turn.acks]
        if acks:
            await ask("gone", ACK, Bigs(acks))
        cuts = [(run_id, one.first_tick) for run_id, one in self._turns.items() if one.first_tick and one.end is None]
        if cuts:
            runs, below = zip(*cuts, strict=True)
            await ask("gone", CUT, Texts(runs), Bigs(below))

    async def _send(self, ask: Any) -> None:
        ids = Texts([one.handler_id for one in self._sends])
        await ask("addressees", ADDRESSEES, ids)
        await ask(
            "sent", SEND, ids, Blobs([blob(one.event) for one in self._sends]), Texts([one.step for one in self._sends])
        )
        await ask("woken", WAKE, ids)

    async def _collect(self, answers: dict[str, list[list[Any]]]) -> None:
        def rows(key: str) -> Iterable[Any]:
            return (row for answer in answers.get(key, ()) for row in answer)

        before = {name(row[0]): name(row[1]) for row in rows("rows")}
        made = {one.handler_id: one for one in map(handler, rows("created"))}
        for create in self._creates:
            handler_id = create.run.handler_id
            self.results[create] = made.get(handler_id) or AlreadyRunning(handler_id)
            if handler_id in made and handler_id in before:
                self.restarted.append(before[handler_id])
        own = {name(row[0]) for row in rows("own")}
        for append in self._appends:
            self.results[append] = None if append.run_id in own else Fenced(append.run_id)
        due = {name(row[0]): row[1] for row in rows("released")}
        for release in self._releases:
            known = release.run_id in due
            self.results[release] = due[release.run_id] if known else Fenced(release.run_id)
        for undo in self._undone:
            self.results[undo] = None
        self._collect_sent(rows("addressees"), rows("sent"))

    def _collect_sent(self, addressees: Iterable[Any], sent: Iterable[Any]) -> None:
        known = {name(row[0]): row for row in addressees}
        ids = iter(sorted(row[0] for row in sent))
        for send in self._sends:
            row = known.get(send.handler_id)
            if row is None:
                self.results[send] = UnknownHandler(send.handler_id)
            elif row[2] != "running":
                self.results[send] = AlreadyOver(send.handler_id)
            else:
                self.results[send] = (Sent(next(ids), name(row[1]), send.event, send.step), row[3])

    def fenced(self) -> list[Append]:
        """Entries of runs that are not ours any more, the rows of which this transaction must not keep."""
        return [one for one in self._appends if isinstance(self.results[one], Fenced)]


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(min(max(seconds, 0.0), 100 * YEAR) * 1_000_000)
