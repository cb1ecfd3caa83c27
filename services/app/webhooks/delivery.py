"""Sends what the outbox holds: claim, send outside of any transaction, record under the claim's token.

At least once, under one id. Several processes share the work: a claim passes over what others hold, and lasts for a
while; what a process that died had claimed comes up again by itself. Of a lane (a receiver and a topic) one message is
under way at a time, and the next one waits for its end; of a receiver a few, so that a slow one holds up nobody else.
"""

import asyncio
from collections import Counter
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.endpoints.service import ENDPOINTS
from services.app.webhooks import secrets
from services.app.webhooks.outbox import WEBHOOKS
from services.app.webhooks.schemas import message_id
from services.app.webhooks.sending import GONE, Attempt, Message, Sender
from shared.clock import now
from shared.http.sse import first_of
from shared.security.envelope import SealError

SLOTS = 64  # messages under way in one process
EACH = 4  # of them to one receiver
LOOK = 10.0  # seconds between two looks, when nothing wakes the loop
FAULT = 1.0  # seconds after a fault of the database
GIVE_UP_DAYS = 3
KEPT_ATTEMPTS = 20  # in a message's log
KEPT_DAYS = 30

_CLAIM = text("""
    WITH due AS MATERIALIZED (
        SELECT id, receiver, next_at, number FROM platform.webhook_message
         WHERE state = 'pending' AND next_at <= clock_timestamp() AND receiver <> ALL(:full)
         ORDER BY next_at, number LIMIT 500),
    fair AS (
        SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY receiver ORDER BY next_at, number) AS place FROM due) d
         WHERE place <= :each),
    taken AS (
        SELECT m.id FROM platform.webhook_message m
         WHERE m.id IN (SELECT id FROM fair) AND m.state = 'pending' AND m.next_at <= clock_timestamp()
         ORDER BY m.next_at, m.number LIMIT :free FOR UPDATE SKIP LOCKED)
    UPDATE platform.webhook_message m
       SET token = gen_random_uuid(), attempts = m.attempts + 1,
           next_at = clock_timestamp() + make_interval(secs => :lease)
      FROM taken WHERE m.id = taken.id
    RETURNING m.id, m.token, m.attempts, m.receiver, m.project_id, m.webhook_id, m.url, m.body,
              m.offered_at < clock_timestamp() - make_interval(days => :days) AS is_old""")

_TARGET = text("SELECT url, enabled, reason, sealed FROM platform.webhook WHERE id = :id")

_RECORD = text("""
    UPDATE platform.webhook_message
       SET state = :state, token = NULL, ended_at = CASE WHEN :state = 'pending' THEN NULL ELSE clock_timestamp() END,
           next_at = CASE WHEN :state = 'pending' THEN clock_timestamp() + make_interval(secs => :delay) END,
           log = CASE WHEN jsonb_array_length(log) < :kept THEN log ELSE log - 0 END || CAST(:entry AS jsonb)
     WHERE id = :id AND token = :token RETURNING lane""")

# Only after the statement that ended the one before: an announcement that waited for it is seen by now.
_NEXT = text("""
    UPDATE platform.webhook_message SET next_at = clock_timestamp()
     WHERE id = (SELECT id FROM platform.webhook_message WHERE lane = :lane AND state = 'pending'
                  ORDER BY sequence, number LIMIT 1)
       AND next_at IS NULL
       AND NOT EXISTS (SELECT 1 FROM platform.webhook_message
                        WHERE lane = :lane AND state = 'pending' AND next_at IS NOT NULL)
    RETURNING id""")

_DISABLE = text("""
    UPDATE platform.webhook SET enabled = false, reason = :reason, revision = revision + 1, updated_at = clock_timestamp()
     WHERE id = :id AND enabled RETURNING project_id""")

_RELEASE = text("""
    UPDATE platform.webhook_message SET token = NULL, next_at = clock_timestamp()
     WHERE token = ANY(:tokens) AND state = 'pending'""")

_SOON = text("""
    SELECT extract(epoch FROM min(next_at) - clock_timestamp()) FROM platform.webhook_message
     WHERE state = 'pending' AND receiver <> ALL(:full)""")

_FORGET = text("""
    DELETE FROM platform.webhook_message
     WHERE state <> 'pending' AND ended_at < clock_timestamp() - make_interval(days => :days)""")

log = structlog.get_logger(__name__)


class Claimed(NamedTuple):
    id: UUID
    token: UUID
    attempts: int
    receiver: UUID
    project_id: UUID
    webhook_id: UUID | None
    url: str | None
    body: str
    is_old: bool


class Refused(Exception):
    """It cannot be sent at all, now or later; the text says why."""


class Delivery:
    """The loop of one process. `sender` does one attempt."""

    def __init__(self, context: AppContext, sender: Sender) -> None:
        self._context = context
        self._sender = sender
        self._delays = context.settings.webhook_retry_delays
        self._lease = 2 * context.settings.webhook_timeout
        self._under_way: dict[asyncio.Task[None], Claimed] = {}
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled; what is under way then comes up again at once, here or elsewhere."""
        try:
            while True:
                # Of what happens from here on nothing is missed.
                hub, self._ended = self._context.hub, asyncio.Event()
                changed = [hub.watch(WEBHOOKS), hub.watch(ENDPOINTS), self._ended]
                await first_of(*changed, timeout=await self._round())
        finally:
            await self._stop()

    async def _round(self) -> float:
        """Begin with what may be sent now; seconds until there may be more."""
        try:
            for claimed in await self.claim():
                task = asyncio.create_task(self._work(claimed), name="webhook")
                self._under_way[task] = claimed
                task.add_done_callback(self._done)
            return await self._seconds_left()
        except Exception as error:  # most likely the database is away; nobody else would go on with the loop
            log.warning("webhooks_stuck", error=type(error).__name__)
            return FAULT

    async def claim(self) -> list[Claimed]:
        free = SLOTS - len(self._under_way)
        if free <= 0:
            return []
        values = {"full": self._full(), "each": EACH, "free": free, "lease": self._lease, "days": GIVE_UP_DAYS}
        async with self._context.database.statement() as connection:
            return [Claimed(*row) for row in await connection.execute(_CLAIM, values)]

    async def deliver(self, claimed: Claimed) -> None:
        """One attempt, and its record."""
        try:
            message = await self._message(claimed)
        except Refused as refused:
            await self._record(claimed, Attempt(False, now(), 0.0, error=str(refused)), "failed")
            return
        attempt = await self._sender.send(message)
        await self._record(claimed, attempt, self._state_after(claimed, attempt))

    async def _message(self, claimed: Claimed) -> Message:
        keyring = self._context.keyring
        try:
            async with self._context.database.transaction() as session:
                if claimed.webhook_id is None:
                    assert claimed.url is not None
                    url, signing = claimed.url, await secrets.of_project(session, keyring, claimed.project_id)
                else:
                    row = (await session.execute(_TARGET, {"id": claimed.webhook_id})).one()
                    if not row.enabled:
                        raise Refused(row.reason or "The webhook is disabled.")
                    url = row.url
                    signing = secrets.opened(keyring, secrets.context_of(claimed.webhook_id), row.sealed)
        except SealError:
            raise Refused("The webhook's secret cannot be read: rotate it.") from None
        return Message(message_id(claimed.id), url, claimed.body, signing)

    def _state_after(self, claimed: Claimed, attempt: Attempt) -> str:
        if attempt.delivered:
            return "delivered"
        gone = attempt.status == GONE
        return "failed" if gone or claimed.is_old or claimed.attempts > len(self._delays) else "pending"

    async def _record(self, claimed: Claimed, attempt: Attempt, state: str) -> None:
        """Nothing, when somebody else has claimed it since."""
        delay = 0.0
        if state == "pending":
            delay = max(self._delays[claimed.attempts - 1], attempt.retry_after or 0.0)
        entry = attempt.entry()
        if state == "failed" and attempt.status != GONE and attempt.seconds:
            entry["error"] = f"{entry['error']} Given up after {claimed.attempts} attempts."
        values = {
            "id": claimed.id, "token": claimed.token, "state": state, "delay": delay, "kept": KEPT_ATTEMPTS,
            "entry": to_json([entry]).decode(),
        }  # fmt: skip
        async with self._context.database.transaction() as session:
            recorded = (await session.execute(_RECORD, values)).one_or_none()
            if recorded is None:
                return
            if state != "pending":
                await release_next(session, recorded.lane)
                self._context.hub.publish_after_commit(session, WEBHOOKS)
            if attempt.status == GONE and claimed.webhook_id is not None:
                await self._disable(session, claimed.webhook_id, attempt.error or "")

    async def _disable(self, session: AsyncSession, webhook_id: UUID, reason: str) -> None:
        project_id = await session.scalar(_DISABLE, {"id": webhook_id, "reason": reason})
        if project_id is not None:
            await audit.record(
                session, None, "webhook.disable", "webhook", webhook_id, project_id=project_id, reason=reason
            )

    async def _work(self, claimed: Claimed) -> None:
        try:
            await self.deliver(claimed)
        except Exception as error:  # it comes up again when its claim has run out
            log.warning("webhook_not_recorded", message=message_id(claimed.id), error=type(error).__name__)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        self._ended.set()

    def _full(self) -> list[UUID]:
        """The receivers that have enough to do with us."""
        counted = Counter(claimed.receiver for claimed in self._under_way.values())
        return [receiver for receiver, count in counted.items() if count >= EACH]

    async def _seconds_left(self) -> float:
        if len(self._under_way) >= SLOTS:
            return LOOK
        async with self._context.database.statement() as connection:
            seconds: Any = await connection.scalar(_SOON, {"full": self._full()})
        return LOOK if seconds is None else min(max(float(seconds), 0.01), LOOK)

    async def _stop(self) -> None:
        claimed = dict(self._under_way)
        for task in claimed:
            task.cancel()
        await asyncio.gather(*claimed, return_exceptions=True)
        await self._sender.aclose()
        if claimed:
            async with self._context.database.statement() as connection:
                await connection.execute(_RELEASE, {"tokens": [one.token for one in claimed.values()]})


async def release_next(session: AsyncSession, lane: UUID) -> None:
    """Let the next message of a lane go, once the one before it has ended in this transaction."""
    await session.execute(_NEXT, {"lane": lane})


async def forget(context: AppContext) -> None:
    """Delete what ended long ago."""
    async with context.database.statement() as connection:
        await connection.execute(_FORGET, {"days": KEPT_DAYS})
