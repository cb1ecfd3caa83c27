"""Add and remove workers; stop and start an endpoint, which is to remove all and to add them again.

Adding that fails takes back what it added, and never touches the workers that ran before.
"""

from contextlib import suppress
from dataclasses import replace

from services.cluster.jobs.patience import PATIENT, PROBING, undo_waits_for_cluster, waits_for_cluster
from services.cluster.jobs.probe import probe as ask
from services.cluster.jobs.probe import ready_workers
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import UnknownEndpoint
from services.cluster.sites.base import Site
from shared.contracts.deployments import ScaleResult, ScaleSpec
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step

READY_SECONDS = 3600.0


async def _site(ctx: Step, spec: ScaleSpec) -> Site:
    tools: ClusterTools = ctx.tools
    return await tools.site(ctx.job_id, spec.cluster_id)


@undo_waits_for_cluster
async def _scale_back(ctx: Step, spec: ScaleSpec, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    site = await tools.site_if_known(ctx.job_id, spec.cluster_id)
    with suppress(UnknownEndpoint):  # nothing of it is there: nothing to take back
        if site is not None:
            await site.runtime.scale(str(spec.endpoint_id), spec.before, spec.generation)


@step("Verify the capacity", weight=1, retry=PATIENT)
@waits_for_cluster
async def verify(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    site = await _site(ctx, spec)
    await site.check_more(spec.endpoint_id, spec.before, spec.after, spec.memory_bytes)
    return spec


@step("Scale", weight=1, undo=_scale_back, retry=PATIENT)
@waits_for_cluster
async def scale(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    runtime = (await _site(ctx, spec)).runtime
    await runtime.scale(str(spec.endpoint_id), spec.after, spec.generation)
    return spec


@step("Wait until ready", weight=5, retry=replace(PATIENT, timeout=READY_SECONDS + 60))
@waits_for_cluster
async def wait_ready(ctx: Step, spec: ScaleSpec) -> ScaleSpec:
    runtime = (await _site(ctx, spec)).runtime
    await runtime.wait_ready(str(spec.endpoint_id), spec.after, READY_SECONDS, ctx.progress)
    return spec


@step("Probe", weight=1, retry=PROBING)
@waits_for_cluster
async def probe(ctx: Step, spec: ScaleSpec) -> ScaleResult:
    """One real inference of every worker that was added."""
    tools: ClusterTools = ctx.tools
    site = await _site(ctx, spec)
    key = await tools.app.worker_key(ctx.job_id, spec.endpoint_id)
    seen = await ready_workers(site.runtime, spec.endpoint_id, spec.after)
    for worker in seen.ready:
        if worker.ordinal >= spec.before:
            await ask(worker, key, spec.name, spec.apis, site.transport())
    await tools.app.publish(ctx.job_id, spec.endpoint_id, seen.model_dump(mode="json", exclude_none=True))
    return ScaleResult(endpoint_id=spec.endpoint_id, replicas=spec.after, generation=spec.generation)


@step("Scale down", weight=1, undo=_scale_back, retry=PATIENT)
@waits_for_cluster
async def scale_down(ctx: Step, spec: ScaleSpec) -> ScaleResult:
    tools: ClusterTools = ctx.tools
    runtime = (await _site(ctx, spec)).runtime
    seen = await runtime.scale(str(spec.endpoint_id), spec.after, spec.generation)
    await tools.app.publish(ctx.job_id, spec.endpoint_id, seen.model_dump(mode="json", exclude_none=True))
    return ScaleResult(endpoint_id=spec.endpoint_id, replicas=spec.after, generation=spec.generation)


async def _up(run: Run, spec: ScaleSpec) -> ScaleResult:
    await run.step(verify, spec)
    await run.step(scale, spec)
    await run.step(wait_ready, spec)
    result: ScaleResult = await run.step(probe, spec)
    return result


async def _down(run: Run, spec: ScaleSpec) -> ScaleResult:
    result: ScaleResult = await run.step(scale_down, spec)
    return result


UP = [verify, scale, wait_ready, probe]
add_worker = job("add_worker", steps=UP, undo_on_failure=True, slots=4, deadline=2 * 3600)(_up)
start_endpoint = job("start_endpoint", steps=UP, undo_on_failure=True, slots=4, deadline=2 * 3600)(_up)
remove_worker = job("remove_worker", steps=[scale_down], slots=4, deadline=3600)(_down)
stop_endpoint = job("stop_endpoint", steps=[scale_down], slots=4, deadline=3600)(_down)
