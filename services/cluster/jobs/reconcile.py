"""Brings this machine in line with what the app says should run: after a restore, a lost folder, or a crash between two steps.

The observer calls it, under its lease. An endpoint on which a job works is left to that job. What is done is bound to
the endpoint's generation: whoever has begun a later change wins, and the next round sees it.
"""

import asyncio
from uuid import UUID

import structlog

from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Observation, StaleGeneration, UnknownEndpoint
from services.cluster.sites import files
from services.cluster.sites.base import silent
from services.cluster.sites.local import LocalSite
from shared.clock import now
from shared.contracts.deployments import ExpectedEndpoint
from shared.contracts.ports import ObserverPort
from shared.jobs.outcomes import StepError

log = structlog.get_logger(__name__)


async def bring_in_line(tools: ClusterTools, app: ObserverPort, cluster_id: UUID, epoch: int) -> list[Observation]:
    """One round. The machine is looked at first: what is there then has its row already, or is nobody's.

    Returns what is to be shown of the endpoints that should be here and could not be restored, with the reason.
    """
    site = tools.local
    there = await site.runtime.observe()
    folders = await asyncio.to_thread(_model_folders, site)
    expected = await app.expected(cluster_id, epoch)
    if expected is None:
        return []
    missing: list[Observation] = []
    owned = {str(one.endpoint_id) for one in expected}
    for endpoint_id in there.keys() - owned:
        log.warning("orphan_removed", endpoint=endpoint_id)
        await site.runtime.remove(endpoint_id)
    for name in folders - owned:
        await files.forget(site.models / name)
    for one in expected:
        try:
            await _serve(site, app, cluster_id, epoch, one, there.get(str(one.endpoint_id)))
        except StaleGeneration:
            continue
        except Exception as error:  # one endpoint's fault keeps none of the others from serving
            reason = f"{type(error).__name__}: {error}"[:300]
            log.warning("endpoint_not_restored", endpoint=str(one.endpoint_id), reason=reason)
            if one.spec is not None and str(one.endpoint_id) not in there:
                missing.append(_missing(one, error))
    return missing


def _missing(one: ExpectedEndpoint, error: Exception) -> Observation:
    why = error.message if isinstance(error, StepError) else f"an unexpected fault ({type(error).__name__})"
    return Observation(
        endpoint_id=str(one.endpoint_id), generation=one.spec.generation if one.spec else 0, replicas=one.replicas,
        workers=[], observed_at=now(), message=f"The endpoint could not be restored on this machine: {why}",
    )  # fmt: skip


async def _serve(
    site: LocalSite,
    app: ObserverPort,
    cluster_id: UUID,
    epoch: int,
    one: ExpectedEndpoint,
    there: Observation | None,
) -> None:
    if one.spec is None:
        return
    if there is not None and there.replicas == one.replicas:
        return
    endpoint_id = str(one.endpoint_id)
    log.warning("endpoint_brought_in_line", endpoint=endpoint_id, replicas=one.replicas)
    if there is not None:
        try:
            await site.runtime.scale(endpoint_id, one.replicas, one.spec.generation)
        except UnknownEndpoint:  # it is on its way out
            pass
        else:
            return
    plan = await site.plan(one.spec)
    key = await app.endpoint_key(cluster_id, epoch, one.endpoint_id)
    workload = await site.workload(one.spec, plan, key=key, replicas=one.replicas)
    await site.bring(one.spec, workload, silent)
    await site.runtime.apply(workload)


def _model_folders(site: LocalSite) -> set[str]:
    return {path.name for path in site.models.iterdir()} if site.models.is_dir() else set()
