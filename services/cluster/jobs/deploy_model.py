"""Deploy a model: verify, bring the model to the cluster, apply, wait until ready, probe, publish.

A failure or a cancel takes down what was started: a deployment that is not live leaves nothing behind.
"""

from dataclasses import replace

from pydantic import BaseModel

from services.cluster.jobs.patience import PATIENT, PROBING, undo_waits_for_cluster, waits_for_cluster
from services.cluster.jobs.probe import probe as ask
from services.cluster.jobs.probe import ready_workers
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Workload
from services.cluster.sites.base import Planned as Plan
from services.cluster.sites.base import Site
from shared.contracts.deployments import Deployment, DeploySpec
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step

READY_SECONDS = 6 * 3600.0  # the most that any plan may ask for
BRING_SECONDS = 6 * 3600.0


class Planned(BaseModel):
    spec: DeploySpec
    plan: Plan


async def _site(ctx: Step, spec: DeploySpec) -> Site:
    tools: ClusterTools = ctx.tools
    return await tools.site(ctx.job_id, spec.cluster_id)


async def workload(ctx: Step, site: Site, planned: Planned) -> Workload:
    """With its secrets: made at the moment of use, kept in no step's result."""
    tools: ClusterTools = ctx.tools
    key = await tools.app.worker_key(ctx.job_id, planned.spec.endpoint_id)
    secrets = await tools.parameters(ctx.job_id, planned.spec)
    return await site.workload(planned.spec, planned.plan, key=key, job=ctx.job_id, secrets=secrets)


@undo_waits_for_cluster
async def _remove(ctx: Step, planned: Planned, _result: object) -> None:
    """All of it: what was brought may be in the runtime's hands before anything was applied."""
    tools: ClusterTools = ctx.tools
    spec = planned.spec
    site = await tools.site_if_known(ctx.job_id, spec.cluster_id)
    if site is not None:
        await site.runtime.remove(str(spec.endpoint_id), spec.generation)
        await site.forget(spec.endpoint_id)


@step("Verify", weight=1, retry=PATIENT)
@waits_for_cluster
async def verify(ctx: Step, spec: DeploySpec) -> Planned:
    """The gate once more, an engine that can run the model, and room for it."""
    tools: ClusterTools = ctx.tools
    await tools.app.check_gate(ctx.job_id, spec.model_id, spec.project_id, spec.digest)
    site = await _site(ctx, spec)
    parameters = await tools.parameters(ctx.job_id, spec)
    plan = await site.plan(spec, parameters=list(parameters), on_progress=ctx.progress)
    await site.check(await site.workload(spec, plan, key=None, job=ctx.job_id))
    return Planned(spec=spec, plan=plan)


@step("Bring the model to the cluster", weight=3, undo=_remove, retry=replace(PATIENT, timeout=BRING_SECONDS))
@waits_for_cluster
async def bring_model(ctx: Step, planned: Planned) -> Planned:
    site = await _site(ctx, planned.spec)
    await site.bring(planned.spec, await workload(ctx, site, planned), ctx.progress)
    return planned


@step("Apply", weight=1, undo=_remove, retry=PATIENT)
@waits_for_cluster
async def apply(ctx: Step, planned: Planned) -> Planned:
    site = await _site(ctx, planned.spec)
    await site.runtime.apply(await workload(ctx, site, planned))
    return planned


@step("Wait until ready", weight=5, retry=replace(PATIENT, timeout=READY_SECONDS + 60))
@waits_for_cluster
async def wait_ready(ctx: Step, planned: Planned) -> Planned:
    runtime = (await _site(ctx, planned.spec)).runtime
    plan = planned.plan
    seconds = min(plan.ready_seconds, READY_SECONDS)
    await runtime.wait_ready(str(planned.spec.endpoint_id), plan.replicas, seconds, ctx.progress)
    return planned


@step("Probe", weight=1, retry=PROBING)
@waits_for_cluster
async def probe(ctx: Step, planned: Planned) -> Planned:
    """One real inference of every worker."""
    tools: ClusterTools = ctx.tools
    spec, plan = planned.spec, planned.plan
    site = await _site(ctx, spec)
    key = await tools.app.worker_key(ctx.job_id, spec.endpoint_id)
    seen = await ready_workers(site.runtime, spec.endpoint_id, plan.replicas)
    for count, worker in enumerate(seen.ready, 1):
        await ask(worker, key, spec.name, plan.apis, site.transport())
        ctx.progress(100 * count / plan.replicas, f"Worker {worker.ordinal} answers")
    return planned


@step("Publish", weight=1, retry=PROBING)
@waits_for_cluster
async def publish(ctx: Step, planned: Planned) -> Deployment:
    """Tell the app what runs; the endpoint is public once it has recorded this job's end."""
    tools: ClusterTools = ctx.tools
    spec, plan = planned.spec, planned.plan
    seen = await ready_workers((await _site(ctx, spec)).runtime, spec.endpoint_id, plan.replicas)
    await tools.app.publish(ctx.job_id, spec.endpoint_id, seen.model_dump(mode="json", exclude_none=True))
    return Deployment(
        endpoint_id=spec.endpoint_id, engine=plan.engine, replicas=plan.replicas, concurrency=plan.concurrency,
        context_tokens=plan.context_tokens, memory_bytes=plan.memory_bytes, generation=spec.generation, apis=plan.apis,
        autoscale=spec.autoscale, plan=plan.model_dump(mode="json"),
    )  # fmt: skip


@job(
    "deploy_model",
    steps=[verify, bring_model, apply, wait_ready, probe, publish],
    undo_on_failure=True,
    slots=16,  # it mostly waits, for pods and their images
    deadline=8 * 3600,
)
async def deploy_model(run: Run, spec: DeploySpec) -> Deployment:
    planned = await run.step(verify, spec)
    planned = await run.step(bring_model, planned)
    planned = await run.step(apply, planned)
    planned = await run.step(wait_ready, planned)
    planned = await run.step(probe, planned)
    made: Deployment = await run.step(publish, planned)
    return made
