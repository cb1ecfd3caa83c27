"""What happened to an endpoint: written in the transaction of the change, read newest first, kept bounded.

`service.settle` tells of states, `services.app.observers` of what a cluster's observer saw and did.
"""

from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import object_session

from services.app.endpoints.tables import EndpointEventRow, EndpointRow
from shared.clock import iso
from shared.http.pages import Listing, Page, PageQuery, paginate

EventType = Literal["state", "worker_restarted", "healed", "heal_failed"]
KEPT = 500  # of one endpoint
_LONGEST = 2000  # characters of a message

LISTING = Listing(id=EndpointEventRow.id, sortable={"at": EndpointEventRow.at}, default="-at")

_TRIM = text("""
    DELETE FROM platform.endpoint_event old USING (
        SELECT id, row_number() OVER (PARTITION BY endpoint_id ORDER BY id DESC) AS place FROM platform.endpoint_event) kept
     WHERE old.id = kept.id AND kept.place > :kept""")
_FORGET = text("""
    DELETE FROM platform.endpoint_event event USING platform.endpoint endpoint
     WHERE endpoint.id = event.endpoint_id AND endpoint.deleted_at < clock_timestamp() - make_interval(days => :days)""")


def tell(endpoint: EndpointRow, kind: EventType, message: str | None) -> None:
    """Add an event to the transaction that the endpoint's row is in; of a row that is in none yet there is no event."""
    session = object_session(endpoint)
    if session is not None:
        shortened = message[:_LONGEST] if message else None
        session.add(EndpointEventRow(endpoint_id=endpoint.id, type=kind, state=endpoint.state, message=shortened))


def tell_of_restarts(endpoint: EndpointRow, before: dict[str, Any], after: dict[str, Any]) -> None:
    """An event for each worker that has been restarted between two observations."""
    known = {worker["id"]: worker.get("restarts", 0) for worker in before.get("workers", [])}
    for worker in after.get("workers", []):
        count = worker.get("restarts", 0)
        if count > known.get(worker["id"], count):
            why = f" {worker['message']}" if worker.get("message") else ""
            times = "once" if count == 1 else f"{count} times"
            tell(endpoint, "worker_restarted", f"Worker {worker['id']} was restarted, {times} so far.{why}")


async def page(session: AsyncSession, endpoint_id: UUID, query: PageQuery) -> Page[EndpointEventRow]:
    statement = select(EndpointEventRow).where(EndpointEventRow.endpoint_id == endpoint_id)
    return await paginate(session, statement, LISTING, query)


def view(event: EndpointEventRow) -> dict[str, Any]:
    return {
        "object": "endpoint_event",
        "id": str(event.id),
        "endpoint_id": str(event.endpoint_id),
        "at": iso(event.at),
        "type": event.type,
        "state": event.state,
        "message": event.message,
    }


async def trim(session: AsyncSession, days: int) -> None:
    """Keep the latest of each endpoint, and none of those that were deleted so many days ago."""
    await session.execute(_TRIM, {"kept": KEPT})
    await session.execute(_FORGET, {"days": days})
