"""Runs without an owner: which are due, and all that it takes to go on with one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from stepway.runner.store import Saved, Sent
from stepway.runner.store.postgres.reading import sent
from stepway.runner.store.postgres.values import HANDLER, Bigs, Texts, handler, name, payload, read

MOST = 250  # runs of one claim

DUE = f"""
SELECT {", ".join("h." + column for column in HANDLER.split(", "))}, h.start, h.context, h.snapshot, h.state, h.first_tick,
    CASE WHEN h.released_at IS NOT NULL THEN greatest(0, extract(epoch FROM now() - h.released_at))::float8 END
FROM unnest(%s, %s) AS f (workflow_name, places), LATERAL (
    SELECT * FROM stepway_runner.handler d
    WHERE d.workflow_name = f.workflow_name AND d.status = 'running' AND d.server_id IS NULL AND d.wake_at <= now()
    ORDER BY d.wake_at, d.number LIMIT f.places FOR UPDATE SKIP LOCKED
) h ORDER BY h.wake_at, h.number
"""
OWN = """
UPDATE stepway_runner.handler SET server_id = %s, wake_at = NULL, released_at = NULL WHERE run_id = ANY(%s)
"""
NEXT = """
SELECT min(n.seconds) FROM unnest(%s) AS f (workflow_name), LATERAL (
    SELECT extract(epoch FROM d.wake_at - now())::float8 AS seconds FROM stepway_runner.handler d
    WHERE d.workflow_name = f.workflow_name AND d.status = 'running' AND d.server_id IS NULL AND d.wake_at > now()
    ORDER BY d.wake_at LIMIT 1
) n
"""
TICKS = "SELECT run_id, seq, tick FROM stepway_runner.journal WHERE run_id = ANY(%s) ORDER BY run_id, seq"
LAST_EVENTS = """
SELECT r.run_id, (SELECT max(e.seq) FROM stepway_runner.event e WHERE e.run_id = r.run_id) FROM unnest(%s) AS r (run_id)
"""
INBOX = "SELECT id, run_id, event, step FROM stepway_runner.inbox WHERE run_id = ANY(%s) ORDER BY id"


@dataclass(slots=True)
class Claimed:
    """Rows that are ours when the transaction is; in how many seconds the next one is due."""

    rows: Sequence[Sequence[Any]]
    next_due: float | None

    def run_ids(self) -> list[str]:
        return [name(row[2]) for row in self.rows]


async def own_due(connection: AsyncConnection, server_id: int, free: Mapping[str, int]) -> Claimed:
    """In the writer's transaction: take runs that are due, oldest first."""
    names = Texts(list(free))
    found = await connection.execute(DUE, [names, Bigs([min(one, MOST) for one in free.values()])], binary=True)
    rows = await found.fetchall()
    if rows:
        await connection.execute(OWN, [server_id, Texts([name(row[2]) for row in rows])])
    if any(_full(rows, one, places) for one, places in free.items()):
        return Claimed(rows, 0.0)
    found = await connection.execute(NEXT, [names], binary=True)
    row = await found.fetchone()
    return Claimed(rows, None if row is None else row[0])


def _full(rows: Sequence[Sequence[Any]], workflow: str, places: int) -> bool:
    """Whether there may be more that this claim was too small for."""
    return places > MOST and sum(name(row[1]) == workflow for row in rows) >= MOST


async def load(connection: AsyncConnection, claimed: Claimed) -> list[Saved]:
    """The runs, which are this server's: their journals and inboxes are changed by nobody else, but for new items."""
    runs = Texts(claimed.run_ids())
    ticks: dict[str, list[str]] = {}
    for run_id, _, tick in await _rows(connection, TICKS, runs):
        ticks.setdefault(run_id, []).append(read(tick))
    lasts = {run_id: -1 if last is None else int(last) for run_id, last in await _rows(connection, LAST_EVENTS, runs)}
    inboxes: dict[str, list[Sent]] = {}
    for row in await _rows(connection, INBOX, runs):
        inboxes.setdefault(row[1], []).append(sent(row))
    return [
        Saved(
            handler(row), payload(row[9]), payload(row[10]), payload(row[11]), payload(row[12]), row[13],
            ticks.get(row[2], []), lasts[row[2]] + 1, inboxes.get(row[2], []), row[14],
        )
        for row in claimed.rows
    ]  # fmt: skip


async def _rows(connection: AsyncConnection, statement: Any, runs: Texts) -> Sequence[Sequence[Any]]:
    found = await connection.execute(statement, [runs], binary=True)
    return await found.fetchall()
