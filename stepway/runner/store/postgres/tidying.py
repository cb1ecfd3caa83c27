"""What makes runs end or go from outside: ending one without an owner, purge, retention."""

from collections.abc import Mapping

from psycopg import AsyncConnection

from stepway.runner.store import End, Retention
from stepway.runner.store.postgres.values import Blobs, Texts, blob, json_blob, name, text

AT_ONCE = 500  # handlers of one transaction

END = """
UPDATE stepway_runner.handler SET updated_at = now(), completed_at = now(), status = %s, error = %s, result = %s,
    left_context = %s, start = NULL, context = NULL, snapshot = NULL, state = NULL, wake_at = NULL, released_at = NULL
WHERE run_id = %s AND status = 'running' AND server_id IS NULL
"""
LAST_WORD = """
INSERT INTO stepway_runner.event (run_id, seq, internal, data)
SELECT %(run)s, coalesce(max(seq), -1) + 1, false, (%(data)s::bytea[])[1] FROM stepway_runner.event WHERE run_id = %(run)s
"""
ROWS = (
    "DELETE FROM stepway_runner.journal WHERE run_id = ANY(%s)",
    "DELETE FROM stepway_runner.inbox WHERE run_id = ANY(%s)",
    "DELETE FROM stepway_runner.event WHERE run_id = ANY(%s)",
)
TOO_OLD = """
DELETE FROM stepway_runner.handler WHERE handler_id IN (
    SELECT handler_id FROM stepway_runner.handler WHERE completed_at < now() - make_interval(secs => %s)
    ORDER BY completed_at LIMIT %s FOR UPDATE SKIP LOCKED
) RETURNING run_id
"""
TOO_MANY = """
DELETE FROM stepway_runner.handler WHERE handler_id IN (
    SELECT handler_id FROM stepway_runner.handler WHERE status <> 'running' AND number <= (
        SELECT number FROM stepway_runner.handler WHERE status <> 'running' ORDER BY number DESC OFFSET %s LIMIT 1
    ) ORDER BY number LIMIT %s FOR UPDATE SKIP LOCKED
) RETURNING run_id
"""
OLD_EVENTS = "DELETE FROM stepway_runner.event WHERE run_id = %s AND seq <= %s"


async def end_unowned(connection: AsyncConnection, run_id: str, end: End, event: str) -> bool:
    key = text(run_id)
    error = None if end.error is None else text(end.error)
    async with connection.transaction():
        done = await connection.execute(END, [end.status, error, json_blob(end.result), blob(end.context), key])
        if not done.rowcount:
            return False
        await connection.execute(LAST_WORD, {"run": key, "data": Blobs([blob(event)])})
        for statement in ROWS[:2]:
            await connection.execute(statement, [Texts([run_id])])
    return True


async def purge(connection: AsyncConnection, handler_id: str) -> str | None:
    """The run that went; None when there is no such handler."""
    async with connection.transaction():
        # The row first: entries that are being written are waited for, later ones find no owner.
        found = await connection.execute(
            "DELETE FROM stepway_runner.handler WHERE handler_id = %s RETURNING run_id", [text(handler_id)]
        )
        row = await found.fetchone()
        if row is None:
            return None
        run_id = name(row[0])
        await _forget(connection, [run_id])
    return run_id


async def trim_handlers(connection: AsyncConnection, retention: Retention) -> list[str]:
    """Forget ended handlers; the runs that went."""
    gone: list[str] = []
    for statement, bound in ((TOO_OLD, retention.age), (TOO_MANY, retention.number)):
        while bound is not None:
            async with connection.transaction():
                found = await connection.execute(statement, [bound, AT_ONCE])
                runs = [name(row[0]) for row in await found.fetchall()]
                await _forget(connection, runs)
            gone += runs
            if len(runs) < AT_ONCE:
                break
    return gone


async def trim_events(connection: AsyncConnection, upto: Mapping[str, int]) -> None:
    """Of these runs, forget the events up to these numbers."""
    for run_id, last in upto.items():
        await connection.execute(OLD_EVENTS, [text(run_id), last])


async def _forget(connection: AsyncConnection, runs: list[str]) -> None:
    if runs:
        for statement in ROWS:
            await connection.execute(statement, [Texts(runs)])
