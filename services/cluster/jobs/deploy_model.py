"""Deploy a model: verify, bring the model to the cluster, apply, wait until ready, probe, publish.

A failure or a cancel takes down what was started: a deployment that is not live leaves nothing behind.
"""

from pydantic import BaseModel

from services.cluster.engines.base import EnginePlan
from services.cluster.jobs import files
from services.cluster.jobs.planning import plan_of, workload
from services.cluster.jobs.probe import probe as ask
from services.cluster.jobs.probe import ready_workers
from services.cluster.jobs.tools import ClusterTools
from shared.contracts.deployments import Deployment, DeploySpec
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.run import Run, Step

READY_SECONDS = 900.0


class Planned(BaseModel):
    spec: DeploySpec
    plan: EnginePlan


async def _remove(ctx: Step, planned: Planned, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(planned.spec.cluster_id)
    await runtime.remove(str(planned.spec.endpoint_id), planned.spec.generation)


async def _forget_files(ctx: Step, planned: Planned, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    await files.forget(tools.model_folder(planned.spec.endpoint_id))


@step("Verify", weight=1)
async def verify(ctx: Step, spec: DeploySpec) -> Planned:
    """The gate once more, an engine that can run the model, and room for it."""
    tools: ClusterTools = ctx.tools
    await tools.app.check_gate(ctx.job_id, spec.model_id, spec.project_id, spec.digest)
    await tools.runtime(spec.cluster_id)
    plan = await plan_of(tools, spec)
    await tools.local.check_capacity(workload(spec, plan, None))
    return Planned(spec=spec, plan=plan)


@step("Bring the model to the cluster", weight=3, undo=_forget_files, retry=RetryPolicy(timeout=6 * 3600.0))
async def bring_model(ctx: Step, planned: Planned) -> Planned:
    tools: ClusterTools = ctx.tools
    spec = planned.spec
    manifest = await tools.manifest(spec.digest or "")
    await files.bring(manifest, tools.model_folder(spec.endpoint_id), tools.objects, ctx.progress)
    return planned


@step("Apply", weight=1, undo=_remove)
async def apply(ctx: Step, planned: Planned) -> Planned:
    tools: ClusterTools = ctx.tools
    key = await tools.app.worker_key(ctx.job_id, planned.spec.endpoint_id)
    runtime = await tools.runtime(planned.spec.cluster_id)
    await runtime.apply(workload(planned.spec, planned.plan, key))
    return planned


@step("Wait until ready", weight=5, retry=RetryPolicy(timeout=READY_SECONDS + 60))
async def wait_ready(ctx: Step, planned: Planned) -> Planned:
    tools: ClusterTools = ctx.tools
    runtime = await tools.runtime(planned.spec.cluster_id)
    await runtime.wait_ready(str(planned.spec.endpoint_id), planned.plan.replicas, READY_SECONDS, ctx.progress)
    return planned


@step("Probe", weight=1, retry=RetryPolicy(attempts=5, delay=0.5))
async def probe(ctx: Step, planned: Planned) -> Planned:
    """One real inference of every worker."""
    tools: ClusterTools = ctx.tools
    spec, plan = planned.spec, planned.plan
    runtime = await tools.runtime(spec.cluster_id)
    key = await tools.app.worker_key(ctx.job_id, spec.endpoint_id)
    seen = await ready_workers(runtime, spec.endpoint_id, plan.replicas)
    for count, worker in enumerate(seen.ready, 1):
        await ask(worker, key, spec.name, plan.apis)
        ctx.progress(100 * count / plan.replicas, f"Worker {worker.ordinal} answers")
    return planned


@step("Publish", weight=1, retry=RetryPolicy(attempts=5, delay=0.5))
async def publish(ctx: Step, planned: Planned) -> Deployment:
    """Tell the app what runs; the endpoint is public once it has recorded this job's end."""
    tools: ClusterTools = ctx.tools
    spec, plan = planned.spec, planned.plan
    runtime = await tools.runtime(spec.cluster_id)
    seen = await ready_workers(runtime, spec.endpoint_id, plan.replicas)
    await tools.app.publish(ctx.job_id, spec.endpoint_id, seen.model_dump(mode="json", exclude_none=True))
    return Deployment(
        endpoint_id=spec.endpoint_id, engine=plan.engine, replicas=plan.replicas, concurrency=plan.concurrency,
        context_tokens=plan.context_tokens, memory_bytes=plan.memory_bytes, generation=spec.generation, apis=plan.apis,
    )  # fmt: skip


@job(
    "deploy_model",
    steps=[verify, bring_model, apply, wait_ready, probe, publish],
    undo_on_failure=True,
    slots=4,
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
