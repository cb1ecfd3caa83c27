"""Delete an endpoint: stop all of its workers, and remove what is ours of it."""

from pydantic import BaseModel

from services.cluster.jobs import files
from services.cluster.jobs.tools import ClusterTools
from shared.contracts.deployments import RemoveSpec
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.run import Run, Step


class Removed(BaseModel):
    endpoint_id: str


@step("Remove the workers", weight=3, retry=RetryPolicy(attempts=5, timeout=300.0))
async def remove(ctx: Step, spec: RemoveSpec) -> None:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    await runtime.remove(str(spec.endpoint_id), spec.generation)


@step("Remove the model's files", weight=1)
async def remove_files(ctx: Step, spec: RemoveSpec) -> Removed:
    tools: ClusterTools = ctx.tools
    await files.forget(tools.model_folder(spec.endpoint_id))
    return Removed(endpoint_id=str(spec.endpoint_id))


@job("delete_endpoint", steps=[remove, remove_files], slots=4, deadline=3600)
async def delete_endpoint(run: Run, spec: RemoveSpec) -> Removed:
    await run.step(remove, spec)
    removed: Removed = await run.step(remove_files, spec)
    return removed
