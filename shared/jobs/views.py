"""How jobs and steps look on the wire: the shape of GET /jobs/{id}, made from ledger rows in one place."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from shared.clock import iso, now

_MOMENT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


def _percent(steps: LiteralString, cancelled: LiteralString = "false") -> LiteralString:
    """SQL for how far a job is (0 to 100), of the weights of its steps; a step that a cancel skipped was not done."""
    return (
        f"(SELECT round(least(coalesce(sum(step.weight * CASE WHEN step.state = 'succeeded' THEN 100 "
        f"WHEN step.state = 'skipped' AND NOT ({cancelled}) THEN 100 "
        f"WHEN step.state = 'running' THEN coalesce(step.percent, 0) ELSE 0 END) "
        f"/ nullif(sum(step.weight), 0), 0), 100)::numeric, 1) FROM {steps} step)"
    )


def job_percent(changed: LiteralString) -> LiteralString:
    """SQL for the percent of the job `%(job)s` with the steps that this statement changes: `changed` has their new rows."""
    return _percent(
        f"(SELECT weight, state, percent FROM jobs.step WHERE job_id = %(job)s AND key NOT IN (SELECT key FROM {changed}) "
        f"UNION ALL SELECT weight, state, percent FROM {changed})"
    )


def step_view(alias: LiteralString) -> LiteralString:
    """SQL for a step's object; `alias` is the name of a step row in the statement."""
    return (
        f"jsonb_build_object('key', {alias}.key, 'title', {alias}.title, 'state', {alias}.state, "
        f"'percent', {alias}.percent, 'message', {alias}.message, 'attempt', {alias}.attempt, "
        f"'started_at', {_MOMENT.format(alias + '.started_at')}, 'ended_at', {_MOMENT.format(alias + '.ended_at')}, "
        f"'error', {alias}.error)"
    )


JOB_COLUMNS = f"""
    job.id, job.kind, job.version, job.state, job.phase, job.attempt, job.error, job.result, job.topic, job.resource_type,
    job.resource_id, job.project_id, job.owner_id, job.created_at, job.started_at, job.ended_at, job.event_seq,
    (SELECT coalesce(jsonb_agg({step_view("step")} ORDER BY step.position, step.key), '[]'::jsonb)
       FROM jobs.step step WHERE step.job_id = job.id) AS steps,
    {_percent("(SELECT weight, state, percent FROM jobs.step WHERE job_id = job.id)", "job.state = 'cancelled'")} AS percent"""

_SELECT = text(f"SELECT {JOB_COLUMNS} FROM jobs.job job WHERE job.id = ANY(:ids)")


async def load(connection: AsyncSession | AsyncConnection, ids: list[UUID]) -> dict[UUID, dict[str, Any]]:
    """The views of the given jobs, by id; unknown ids are left out."""
    if not ids:
        return {}
    rows = (await connection.execute(_SELECT, {"ids": ids})).mappings()
    return {row["id"]: job_view(row) for row in rows}


async def load_one(connection: AsyncSession | AsyncConnection, job_id: UUID) -> dict[str, Any] | None:
    return (await load(connection, [job_id])).get(job_id)


def job_view(row: Mapping[Any, Any]) -> dict[str, Any]:
    percent = 100.0 if row["state"] == "succeeded" else float(row["percent"])
    resource = {"type": row["resource_type"], "id": str(row["resource_id"])} if row["resource_type"] else None
    return {
        "object": "job",
        "id": str(row["id"]),
        "kind": row["kind"],
        "state": row["state"],
        "percent": percent,
        "eta_seconds": _eta(row["state"], row["started_at"], percent),
        "attempt": row["attempt"],
        "steps": row["steps"],
        "error": row["error"],
        "result": row["result"],
        "workflow_id": str(row["topic"]) if row["topic"] else None,
        "resource": resource,
        "project_id": str(row["project_id"]) if row["project_id"] else None,
        "created_at": iso(row["created_at"]),
        "started_at": iso(row["started_at"]),
        "ended_at": iso(row["ended_at"]),
    }


def _eta(state: str, started_at: datetime | None, percent: float) -> int | None:
    """Seconds left at the pace so far; null until there is a pace to speak of."""
    if state != "running" or started_at is None or percent < 5:
        return None
    elapsed = (now() - started_at).total_seconds()
    return max(round(elapsed * (100 - percent) / percent), 0)
