"""Adding and removing workers: how many whole workers, and the job. One job at a time works on an endpoint."""

import math
from typing import Any
from uuid import UUID

from services.app.audit import service as audit
from services.app.endpoints import repository, service
from services.app.endpoints.deploy import RESULT_SCHEMA as ENDPOINT_SCHEMA
from services.app.endpoints.tables import EndpointRow
from services.app.projects import quotas
from services.app.wizards.contract import Visit
from shared.contracts.deployments import ScaleSpec
from shared.errors import Fault, Problem
from shared.jobs.ledger import JobRequest, JobView

RESULT_SCHEMA = ENDPOINT_SCHEMA


def plan(endpoint: EndpointRow, additional_concurrency: int) -> dict[str, int] | None:
    """How many whole workers the additional concurrency takes; None while the endpoint has none to measure by."""
    per_worker = endpoint.desired.get("concurrency")
    if not per_worker:
        return None
    workers = math.ceil(additional_concurrency / per_worker)
    return {
        "additional_workers": workers,
        "added_concurrency": workers * per_worker,
        "concurrency_per_worker": per_worker,
    }


async def plan_view(visit: Visit, endpoint_id: UUID, additional_concurrency: int) -> dict[str, Any]:
    endpoint = await repository.get(visit.session, endpoint_id)
    if endpoint is None or not visit.caller.sees(endpoint.project_id):
        return {}
    return plan(endpoint, additional_concurrency) or {}


async def faults(visit: Visit, endpoint_id: UUID) -> list[Fault]:
    endpoint = await repository.get(visit.session, endpoint_id)
    if endpoint is not None and not visit.caller.works_in(endpoint.project_id):
        return [Fault("endpoint_id", "not_a_member", "is in a project that you may only read")]
    return []


async def start_adding(
    visit: Visit, endpoint_id: UUID, additional_concurrency: int, *, topic: UUID | None
) -> JobRequest:
    endpoint = await _serving(visit, endpoint_id)
    planned = plan(endpoint, additional_concurrency)
    if planned is None:
        raise Problem("endpoint_not_ready", "The endpoint has no workers yet to measure by.", param="endpoint_id")
    await quotas.check(visit.session, endpoint.project_id, workers=planned["additional_workers"], jobs_in_flight=1)
    return await _start(visit, endpoint, planned["additional_workers"], "add_worker", topic)


async def remove_workers(visit: Visit, endpoint_id: UUID, count: int) -> JobView:
    """Begin to remove the newest workers; at least one stays."""
    endpoint = await _serving(visit, endpoint_id)
    if endpoint.desired.get("replicas", 0) - count < 1:
        raise Problem("conflict", "At least one worker stays; delete the endpoint to remove all.")
    request = await _start(visit, endpoint, -count, "remove_worker", None)
    details = {"count": count}
    await audit.record(visit.session, visit.caller, "endpoint.remove_worker", "endpoint", endpoint_id,
                       project_id=endpoint.project_id, **details)  # fmt: skip
    return await visit.context.ledger.submit(visit.session, request)


async def _serving(visit: Visit, endpoint_id: UUID) -> EndpointRow:
    endpoint = await service.changeable(visit.session, visit.caller, endpoint_id)
    if endpoint.phase == "updating":
        raise Problem("endpoint_locked", "Another job is changing the endpoint; wait for its end.", param="endpoint_id")
    if endpoint.phase != "serving":
        raise Problem("endpoint_not_ready", f"The endpoint is {endpoint.state}.", param="endpoint_id")
    return endpoint


async def _start(visit: Visit, endpoint: EndpointRow, more: int, kind: str, topic: UUID | None) -> JobRequest:
    before = int(endpoint.desired["replicas"])
    endpoint.generation += 1
    endpoint.phase = "updating"
    service.settle(endpoint)
    await visit.session.flush()
    visit.context.hub.publish_after_commit(visit.session, service.ENDPOINTS)
    spec = ScaleSpec(
        endpoint_id=endpoint.id, project_id=endpoint.project_id, cluster_id=endpoint.cluster_id, name=endpoint.name,
        before=before, after=before + more, concurrency=endpoint.desired["concurrency"],
        memory_bytes=endpoint.desired["memory_bytes"],
        generation=endpoint.generation, apis=endpoint.desired.get("apis", []),
    )  # fmt: skip
    return JobRequest(
        visit.context.jobs.latest(kind), spec, project_id=endpoint.project_id, owner_id=visit.caller.user_id,
            key_id=visit.caller.key_id, topic=topic,
        resource_type="endpoint", resource_id=endpoint.id,
    )  # fmt: skip
