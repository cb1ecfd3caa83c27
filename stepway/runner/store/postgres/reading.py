"""Queries: rows of handlers, events of runs, items of inboxes."""

from collections.abc import Collection, Sequence
from typing import Any

from psycopg import AsyncConnection

from stepway.runner.store import Event, Handler, Sent
from stepway.runner.store.postgres.values import HANDLER, Bigs, Texts, handler, name, payload, read, text

UNBOUNDED = 1 << 62  # bytes
EVENTS = """
SELECT seq, internal, data FROM (
    SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING) - octet_length(e.data) AS before
    FROM (
        SELECT seq, internal, data FROM stepway_runner.event
        WHERE run_id = %s AND seq > %s AND (%s OR NOT internal) ORDER BY seq LIMIT %s
    ) e
) sized WHERE before < %s ORDER BY seq
"""
# By run: its newest number, and up to so many of those above what is known; as many as fit, from the oldest on.
NEWER = """
SELECT w.run_id, n.seq, n.internal, n.data FROM unnest(%s, %s) AS w (run_id, last), LATERAL (
    SELECT * FROM (
        SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.seq DESC ROWS UNBOUNDED PRECEDING) - octet_length(e.data) AS newer
        FROM (
            SELECT seq, internal, data FROM stepway_runner.event WHERE run_id = w.run_id AND seq > w.last
            ORDER BY seq DESC LIMIT %s
        ) e
    ) sized WHERE newer < %s
) n ORDER BY n.seq
"""
RUNNING = "SELECT run_id, status = 'running' FROM stepway_runner.handler WHERE run_id = ANY(%s)"
ITEMS = """
SELECT i.id, i.run_id, i.event, i.step FROM stepway_runner.inbox i JOIN stepway_runner.handler h ON h.run_id = i.run_id
WHERE h.server_id = %s AND h.status = 'running' AND NOT (i.id = ANY(%s)) ORDER BY i.id
"""


async def one_handler(connection: AsyncConnection, handler_id: str) -> Handler | None:
    found = await connection.execute(
        f"SELECT {HANDLER} FROM stepway_runner.handler WHERE handler_id = %s", [text(handler_id)], binary=True
    )
    row = await found.fetchone()
    return None if row is None else handler(row)


async def left_context(connection: AsyncConnection, handler_id: str) -> str | None:
    found = await connection.execute(
        "SELECT left_context FROM stepway_runner.handler WHERE handler_id = %s", [text(handler_id)], binary=True
    )
    row = await found.fetchone()
    return None if row is None else payload(row[0])


async def handlers(
    connection: AsyncConnection, statuses: Collection[str] | None, workflows: Collection[str] | None,
    limit: int | None, below: int | None, *, results: bool = True,
) -> tuple[list[Handler], int | None]:  # fmt: skip
    """Newest first, with the number below which the next page begins."""
    values: list[Any] = []
    rules = []
    if statuses is not None and set(statuses) == {"running"}:
        rules.append("status = 'running'")  # as the index has it
    elif statuses is not None:
        rules.append("status = ANY(%s)")
        values.append(Texts(list(statuses)))
    if workflows is not None:
        rules.append("workflow_name = ANY(%s)")
        values.append(Texts(list(workflows)))
    if below is not None:
        rules.append("number < %s")
        values.append(below)
    where = f"WHERE {' AND '.join(rules)}" if rules else ""
    bound = "" if limit is None else f"LIMIT {limit + 1:d}"
    columns = HANDLER if results else HANDLER.replace("result", "NULL AS result")
    found = await connection.execute(
        f"SELECT {columns}, number FROM stepway_runner.handler {where} ORDER BY number DESC {bound}".encode(),
        values, binary=True,
    )  # fmt: skip
    rows = await found.fetchall()
    page = rows if limit is None else rows[:limit]
    return [handler(row) for row in page], int(page[-1][9]) if page and len(page) < len(rows) else None


async def events(
    connection: AsyncConnection, run_id: str, after: int, limit: int, *, internal: bool, size: int | None
) -> list[Event]:
    found = await connection.execute(
        EVENTS, [text(run_id), after, internal, limit, UNBOUNDED if size is None else size], binary=True
    )
    return [Event(seq, inner, read(data)) for seq, inner, data in await found.fetchall()]


async def last_event(connection: AsyncConnection, run_id: str) -> int:
    found = await connection.execute(
        "SELECT max(seq) FROM stepway_runner.event WHERE run_id = %s", [text(run_id)], binary=True
    )
    row = await found.fetchone()
    return -1 if row is None or row[0] is None else int(row[0])


async def newer(
    connection: AsyncConnection, known: Sequence[tuple[str, int]], each: int, size: int
) -> tuple[dict[str, list[Event]], dict[str, bool]]:
    """Of runs with the newest event known of each: up to so many of their newest events (none that has so many bytes
    of newer ones after it), and, of those that there are, whether they still run.

    Asked in this order: a run that has ended has no event that this does not see.
    """
    runs = Texts([one[0] for one in known])
    found = await connection.execute(RUNNING, [runs], binary=True)
    running = {name(row[0]): bool(row[1]) for row in await found.fetchall()}
    found = await connection.execute(NEWER, [runs, Bigs([one[1] for one in known]), each, size], binary=True)
    news: dict[str, list[Event]] = {}
    for run_id, seq, internal, data in await found.fetchall():
        news.setdefault(name(run_id), []).append(Event(seq, internal, read(data)))
    return news, running


async def items(connection: AsyncConnection, server_id: int, given: Sequence[int]) -> list[Sent]:
    """What lies in the inboxes of this server's runs, but for those that it has had."""
    found = await connection.execute(ITEMS, [server_id, Bigs(given)], binary=True)
    return [sent(row) for row in await found.fetchall()]


def sent(row: Sequence[Any]) -> Sent:
    return Sent(row[0], name(row[1]), payload(row[2]), None if row[3] is None else name(row[3]))
