"""Endpoints: what they look like, who may touch them, deletion."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.endpoints import events, repository
from services.app.endpoints.state import derive, wanted_workers
from services.app.endpoints.tables import EndpointRow
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision
from services.app.wizards.contract import Visit
from shared.clock import iso
from shared.contracts.deployments import RemoveSpec
from shared.errors import Problem
from shared.jobs.ledger import JobRequest, JobView

ENDPOINTS = "endpoints"  # the hub's name for "an endpoint has changed"


def view(endpoint: EndpointRow) -> dict[str, Any]:
    workers = endpoint.observed.get("workers", [])
    desired = endpoint.desired
    # While the cluster cannot be looked at, nobody knows which workers are.
    ready = 0 if endpoint.observed.get("cluster_fault") else sum(worker["state"] == "ready" for worker in workers)
    return {
        "object": "endpoint",
        "id": str(endpoint.id),
        "name": endpoint.name,
        "slug": endpoint.slug,
        "project_id": str(endpoint.project_id),
        "model_id": str(endpoint.model_id),
        "cluster_id": str(endpoint.cluster_id),
        "template_id": str(endpoint.template_id) if endpoint.template_id else None,
        "credential_id": str(endpoint.credential_id) if endpoint.credential_id else None,
        "digest": endpoint.digest,
        "engine": endpoint.engine,
        "deploy_config": endpoint.deploy_config,
        "tuning": endpoint.tuning,
        "state": endpoint.state,
        "reason": endpoint.reason,
        "replicas": {"desired": wanted_workers(endpoint.phase, desired, endpoint.observed), "ready": ready},
        "autoscale": desired.get("autoscale"),
        "concurrency": {"per_worker": desired.get("concurrency"), "total": _total(desired)},
        "context_tokens": desired.get("context_tokens"),
        "apis": desired.get("apis", []),
        "url": f"/endpoints/{endpoint.id}/v1",
        "generation": endpoint.generation,
        "observed_at": _moment(endpoint.observed.get("observed_at")),
        "created_by": str(endpoint.created_by) if endpoint.created_by else None,
        "created_at": iso(endpoint.created_at),
        "updated_at": iso(endpoint.updated_at),
        "revision": endpoint.revision,
    }


def _moment(seen: str | None) -> str | None:
    """A time of an observation, as the wire writes times."""
    return iso(datetime.fromisoformat(seen)) if seen else None


def _total(desired: dict[str, Any]) -> int | None:
    per_worker = desired.get("concurrency")
    return None if per_worker is None else per_worker * desired.get("replicas", 0)


def worker_views(endpoint: EndpointRow) -> list[dict[str, Any]]:
    """The workers as last seen, in state `unknown` while the cluster cannot be looked at. Where they listen stays inside."""
    fault = endpoint.observed.get("cluster_fault")
    unknown = {"state": "unknown", "message": fault} if fault else {}
    shown = []
    for worker in endpoint.observed.get("workers", []):
        kept = {name: value for name, value in worker.items() if name not in ("url", "host", "last_log")}
        kept |= {name: _moment(kept[name]) for name in ("started_at", "ready_at") if kept.get(name)}
        shown.append({"object": "worker", **kept, **unknown, "endpoint_id": str(endpoint.id)})
    return shown


def newest_worker(endpoint: EndpointRow) -> int:
    """The number of the worker that goes first when workers are removed."""
    return int(endpoint.desired.get("replicas", 0)) - 1


def settle(endpoint: EndpointRow) -> bool:
    """Derive the state anew, and tell of it where it has changed; whether it has."""
    state, reason = derive(endpoint.phase, endpoint.desired, endpoint.observed)
    reason = reason if endpoint.phase not in ("failed", "deleted", "deploying") else endpoint.reason
    if (state, reason) == (endpoint.state, endpoint.reason):
        return False
    endpoint.state, endpoint.reason = state, reason
    endpoint.revision += 1
    endpoint.updated_at = datetime.now(UTC)
    events.tell(endpoint, "state", reason)
    return True


async def visible(session: AsyncSession, caller: Caller, endpoint_id: UUID, *, lock: bool = False) -> EndpointRow:
    endpoint = await repository.get(session, endpoint_id, lock=lock)
    if endpoint is None or endpoint.state == "deleted":
        raise Problem("not_found", "There is no such endpoint.")
    caller.check_sees(endpoint.project_id, "endpoint")
    return endpoint


async def changeable(session: AsyncSession, caller: Caller, endpoint_id: UUID) -> EndpointRow:
    endpoint = await visible(session, caller, endpoint_id, lock=True)
    caller.check_works_in(endpoint.project_id, "endpoint")
    return endpoint


async def delete(visit: Visit, endpoint_id: UUID, expected: Revisions | None = None) -> JobView:
    """Begin to delete an endpoint, a failed one too. While a job works on it: `endpoint_locked` (409)."""
    session, caller = visit.session, visit.caller
    endpoint = await changeable(session, caller, endpoint_id)
    check_revision(endpoint, expected)
    if endpoint.phase == "deleting":
        raise Problem("endpoint_locked", "The endpoint is being deleted already.")
    if endpoint.phase in ("deploying", "updating"):
        raise Problem(
            "endpoint_locked", f"A job works on the endpoint ({endpoint.phase}); cancel it first, or wait for its end."
        )
    endpoint.generation += 1
    endpoint.phase = "deleting"
    settle(endpoint)
    await session.flush()
    spec = RemoveSpec(endpoint_id=endpoint.id, cluster_id=endpoint.cluster_id, generation=endpoint.generation)
    await audit.record(session, caller, "endpoint.delete", "endpoint", endpoint_id, project_id=endpoint.project_id)
    visit.context.hub.publish_after_commit(session, ENDPOINTS)
    return await visit.context.ledger.submit(session, job_request(visit, endpoint, "delete_endpoint", spec, None))


def job_request(visit: Visit, endpoint: EndpointRow, kind: str, spec: BaseModel, topic: UUID | None) -> JobRequest:
    """A job on an endpoint, by who visits."""
    return JobRequest(
        visit.context.jobs.latest(kind), spec, project_id=endpoint.project_id, owner_id=visit.caller.user_id,
        key_id=visit.caller.key_id, topic=topic, resource_type="endpoint", resource_id=endpoint.id,
    )  # fmt: skip
