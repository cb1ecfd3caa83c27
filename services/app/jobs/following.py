"""Following one job over HTTP: its view at its end, and its events as they come. Routes of whatever a job is use it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from fastapi import Request, Response

from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.jobs import repository
from services.app.streams import check_still_valid, hold_slot, open_stream
from shared.http.sse import Batch, first_of, last_event_id
from shared.jobs.hub import end_name
from shared.jobs.ledger import FINAL


async def visible(context: AppContext, caller: Caller, job_id: UUID) -> dict[str, Any]:
    async with context.database.transaction() as session:
        return await repository.visible(session, caller, job_id)


async def awaited(
    request: Request, context: AppContext, caller: Caller, job_id: UUID, seconds: float
) -> dict[str, Any]:
    """The job as it is now (0 seconds), at its end, after so many seconds, or when the service stops."""
    if not seconds:
        return await visible(context, caller, job_id)
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    with hold_slot(request, caller) as closing:
        while True:
            ended = context.hub.watch(end_name(job_id))
            shown = await visible(context, caller, job_id)
            left = deadline - clock()
            if shown["state"] in FINAL or left <= 0 or closing.is_set():
                return shown
            await first_of(ended, closing, timeout=min(left, 5.0))
            await check_still_valid(request, caller)


async def follow(request: Request, context: AppContext, caller: Caller, job_id: UUID) -> Response:
    """Server-sent events of a job and its steps, numbered without gaps; the stream ends with the job.

    Resumes after Last-Event-ID; one that is beyond the newest event replays all. 204 when there is nothing to come.
    """
    seen = last_event_id(request)
    shown = await visible(context, caller, job_id)
    after = await context.feeds.start_after("job", job_id, seen)
    if shown["state"] in FINAL and await _has_ended(context, job_id, after):
        return Response(status_code=204)

    async def batches() -> AsyncIterator[Batch]:
        async for events in context.feeds.follow("job", job_id, after):
            yield b"".join(event.encoded for event in events)
            last = next((event for event in reversed(events) if event.type == "job"), None)
            if last is not None and last.state in FINAL and await _has_ended(context, job_id, events[-1].number):
                return

    return open_stream(request, caller, batches())


async def _has_ended(context: AppContext, job_id: UUID, seen: int) -> bool:
    """Whether there is nothing after what was sent: a retried job goes on after its first end."""
    async with context.database.transaction() as session:
        return seen >= await repository.newest_event(session, job_id)
