"""Add and remove workers. Adding that fails takes back what it added, and never touches the workers that ran before."""

from contextlib import suppress

from services.cluster.jobs.probe import probe as ask
from services.cluster.jobs.probe import ready_workers
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import UnknownEndpoint
from shared.contracts.deployments import ScaleResult, ScaleSpec
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent
from shared.jobs.run import Run, Step

READY_SECONDS = 900.0


async def _scale_back(ctx: Step, spec: ScaleSpec, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    with suppress(UnknownEndpoint):  # nothing of it is there: nothing to take back
        await runtime.scale(str(spec.endpoint_id), spec.before, spec.generation)


@step("Verify the capacity", weight=1)
async def verify(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    tools: ClusterTools = ctx.tools
    await tools.runtime(spec.cluster_id)
    capacity = await tools.local.capacity()
    seen = (await tools.local.observe()).get(str(spec.endpoint_id))
    more = max(spec.after - (seen.replicas if seen else spec.before), 0)
    free = capacity.memory_bytes - capacity.memory_promised_bytes
    if more * spec.memory_bytes > free:
        needed = f"{more} more workers need {more * spec.memory_bytes // 2**20} MiB"
        raise Permanent(
            "insufficient_capacity", f"{needed} of memory; {max(free, 0) // 2**20} MiB are not promised yet."
        )
    return spec


@step("Scale", weight=1, undo=_scale_back)
async def scale(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    await runtime.scale(str(spec.endpoint_id), spec.after, spec.generation)
    return spec


@step("Wait until ready", weight=5, retry=RetryPolicy(timeout=READY_SECONDS + 60))
async def wait_ready(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    await runtime.wait_ready(str(spec.endpoint_id), spec.after, READY_SECONDS, ctx.progress)
    return spec


@step("Probe", weight=1, retry=RetryPolicy(attempts=5, delay=0.5))
async def probe(ctx: Step, spec: ScaleSpec) -> ScaleResult:
    """One real inference of every worker that was added."""
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    key = await tools.app.worker_key(ctx.job_id, spec.endpoint_id)
    seen = await ready_workers(runtime, spec.endpoint_id, spec.after)
    for worker in seen.ready:
        if worker.ordinal >= spec.before:
            await ask(worker, key, spec.name, spec.apis)
    await tools.app.publish(ctx.job_id, spec.endpoint_id, seen.model_dump(mode="json", exclude_none=True))
    return ScaleResult(endpoint_id=spec.endpoint_id, replicas=spec.after, generation=spec.generation)


@step("Scale down", weight=1, undo=_scale_back)
async def scale_down(ctx: Step, spec: ScaleSpec) -> ScaleResult:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(spec.cluster_id)
    await runtime.scale(str(spec.endpoint_id), spec.after, spec.generation)
    return ScaleResult(endpoint_id=spec.endpoint_id, replicas=spec.after, generation=spec.generation)


@job("add_worker", steps=[verify, scale, wait_ready, probe], undo_on_failure=True, slots=4, deadline=2 * 3600)
async def add_worker(run: Run, spec: ScaleSpec) -> ScaleResult:
    await run.step(verify, spec)
    await run.step(scale, spec)
    await run.step(wait_ready, spec)
    result: ScaleResult = await run.step(probe, spec)
    return result


@job("remove_worker", steps=[scale_down], slots=4, deadline=3600)
async def remove_worker(run: Run, spec: ScaleSpec) -> ScaleResult:
    result: ScaleResult = await run.step(scale_down, spec)
    return result
