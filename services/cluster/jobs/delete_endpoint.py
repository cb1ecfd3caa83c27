"""Delete an endpoint: stop all of its workers, and remove what is ours of it.

A cluster that cannot be reached is waited for; the job then fails with the reason, and can be retried. Once somebody has
had the cluster forgotten there is nothing left to remove anything from.
"""

from pydantic import BaseModel

from services.cluster.jobs.patience import PATIENT, waits_for_cluster
from services.cluster.jobs.tools import ClusterTools
from shared.contracts.deployments import RemoveSpec
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step


class Removed(BaseModel):
    endpoint_id: str


@step("Remove the workers", weight=3, retry=PATIENT)
@waits_for_cluster
async def remove(ctx: Step, spec: RemoveSpec) -> None:
    tools: ClusterTools = ctx.tools
    site = await tools.site_if_known(ctx.job_id, spec.cluster_id)
    if site is not None:
        await site.runtime.remove(str(spec.endpoint_id), spec.generation)


@step("Remove the model's files", weight=1)
@waits_for_cluster
async def remove_files(ctx: Step, spec: RemoveSpec) -> Removed:
    tools: ClusterTools = ctx.tools
    site = await tools.site_if_known(ctx.job_id, spec.cluster_id)
    if site is not None:
        await site.forget(spec.endpoint_id)
    return Removed(endpoint_id=str(spec.endpoint_id))


@job("delete_endpoint", steps=[remove, remove_files], slots=4, deadline=3600)
async def delete_endpoint(run: Run, spec: RemoveSpec) -> Removed:
    await run.step(remove, spec)
    removed: Removed = await run.step(remove_files, spec)
    return removed
