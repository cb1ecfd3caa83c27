"""More workers, fewer, none, and back again: how many whole workers, and the job. One job at a time works on an endpoint."""

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
    endpoint = await serving(visit, endpoint_id)
    planned = plan(endpoint, additional_concurrency)
    if planned is None:
        raise Problem("endpoint_not_ready", "The endpoint has no workers yet to measure by.", param="endpoint_id")
    _check_by_hand(endpoint)
    await quotas.check(visit.session, endpoint.project_id, workers=planned["additional_workers"], jobs_in_flight=1)
    before = int(endpoint.desired["replicas"])
    return await _request(visit, endpoint, "add_worker", before, before + planned["additional_workers"], topic)


async def remove_workers(visit: Visit, endpoint_id: UUID, count: int) -> JobView:
    """Begin to remove the newest workers; at least one stays."""
    endpoint = await serving(visit, endpoint_id)
    if endpoint.desired.get("replicas", 0) - count < 1:
        raise Problem("conflict", "At least one worker stays; stop the endpoint, or delete it, to remove all.")
    return await scale_to(visit, endpoint, endpoint.desired["replicas"] - count)


async def scale_to(visit: Visit, endpoint: EndpointRow, replicas: int) -> JobView:
    """Begin to add or remove workers until there are so many. The endpoint is locked, and serves."""
    _check_by_hand(endpoint)
    before = int(endpoint.desired["replicas"])
    if replicas == before:
        raise Problem("conflict", f"The endpoint has {before} workers already.", param="replicas")
    kind = "add_worker" if replicas > before else "remove_worker"
    await quotas.check(visit.session, endpoint.project_id, workers=max(replicas - before, 0), jobs_in_flight=1)
    return await _submit(visit, endpoint, kind, before, replicas)


async def stop(visit: Visit, endpoint_id: UUID) -> JobView:
    """Begin to remove all workers; the endpoint stays, with its name and its model's files."""
    endpoint = await serving(visit, endpoint_id)
    _check_by_hand(endpoint)
    return await _submit(visit, endpoint, "stop_endpoint", int(endpoint.desired["replicas"]), 0)


async def start(visit: Visit, endpoint_id: UUID) -> JobView:
    """Begin to start the workers that a stopped endpoint had."""
    endpoint = await service.changeable(visit.session, visit.caller, endpoint_id)
    if endpoint.phase != "stopped":
        raise Problem("endpoint_not_ready", f"The endpoint is not stopped, but {endpoint.state}.", param="endpoint_id")
    after = int(endpoint.desired["replicas"])
    await quotas.check(visit.session, endpoint.project_id, jobs_in_flight=1)
    return await _submit(visit, endpoint, "start_endpoint", 0, after)


async def serving(visit: Visit, endpoint_id: UUID) -> EndpointRow:
    """The endpoint, locked, if the caller may change it and no job works on it."""
    endpoint = await service.changeable(visit.session, visit.caller, endpoint_id)
    if endpoint.phase == "updating":
        raise Problem("endpoint_locked", "Another job is changing the endpoint; wait for its end.", param="endpoint_id")
    if endpoint.phase != "serving":
        raise Problem("endpoint_not_ready", f"The endpoint is {endpoint.state}.", param="endpoint_id")
    return endpoint


def _check_by_hand(endpoint: EndpointRow) -> None:
    if endpoint.desired.get("autoscale"):
        raise Problem(
            "conflict", "The cluster itself sets the number of workers; change `autoscale`, or set it to null first."
        )


async def _submit(visit: Visit, endpoint: EndpointRow, kind: str, before: int, after: int) -> JobView:
    request = await _request(visit, endpoint, kind, before, after, None)
    await audit.record(visit.session, visit.caller, f"endpoint.{kind.removesuffix('_endpoint')}", "endpoint",
                       endpoint.id, project_id=endpoint.project_id, before=before, after=after)  # fmt: skip
    return await visit.context.ledger.submit(visit.session, request)


async def _request(
    visit: Visit, endpoint: EndpointRow, kind: str, before: int, after: int, topic: UUID | None
) -> JobRequest:
    endpoint.generation += 1
    endpoint.phase = "updating" if before else "deploying"
    service.settle(endpoint)
    await visit.session.flush()
    visit.context.hub.publish_after_commit(visit.session, service.ENDPOINTS)
    spec = ScaleSpec(
        endpoint_id=endpoint.id, project_id=endpoint.project_id, cluster_id=endpoint.cluster_id, name=endpoint.name,
        before=before, after=after, concurrency=endpoint.desired["concurrency"],
        memory_bytes=endpoint.desired["memory_bytes"],
        generation=endpoint.generation, apis=endpoint.desired.get("apis", []),
    )  # fmt: skip
    return service.job_request(visit, endpoint, kind, spec, topic)
