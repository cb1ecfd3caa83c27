"""Deploy a model: verify, bring the model to the cluster, apply, wait until ready, probe, publish.

A failure or a cancel takes down what was started: a deployment that is not live leaves nothing behind.
"""

from pydantic import BaseModel, SecretStr

from services.cluster.engines.base import DeployConfig, EnginePlan, ModelSource
from services.cluster.engines.registry import engine_for
from services.cluster.jobs import files
from services.cluster.jobs.probe import probe as ask
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Workload
from shared.contracts.deployments import Deployment, DeploySpec
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent
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
    if spec.digest is None:
        raise Permanent(
            "engine_unsupported", "This machine runs no proxy to cloud models; deploy it to a Kubernetes cluster."
        )
    manifest = await tools.manifest(spec.digest)
    engine = engine_for(manifest.files, spec.metadata)
    lacking = await engine.preflight()
    if lacking is not None:
        raise Permanent("engine_unavailable", lacking)
    source = ModelSource(
        name=spec.name, directory=tools.model_folder(spec.endpoint_id), files=manifest.files, metadata=spec.metadata
    )
    facts = await tools.local.inspect()
    config = DeployConfig.model_validate(spec.config.model_dump(include=set(DeployConfig.model_fields)))
    plan = engine.plan(source, config, cpus=facts.nodes[0].cpus)
    await tools.local.check_capacity(_workload(spec, plan, None))
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
    await runtime.apply(_workload(planned.spec, planned.plan, key))
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
    seen = (await runtime.observe())[str(spec.endpoint_id)]
    for count, worker in enumerate(seen.ready, 1):
        await ask(worker, key, spec.name, plan.apis)
        ctx.progress(100 * count / plan.replicas, f"Worker {worker.ordinal} answers")
    return planned


@step("Publish", weight=1)
async def publish(ctx: Step, planned: Planned) -> Deployment:
    """Tell the app what runs; the endpoint is public once it has recorded this job's end."""
    tools: ClusterTools = ctx.tools
    spec, plan = planned.spec, planned.plan
    runtime = await tools.runtime(spec.cluster_id)
    seen = (await runtime.observe())[str(spec.endpoint_id)]
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


def _workload(spec: DeploySpec, plan: EnginePlan, key: str | None) -> Workload:
    return Workload(
        endpoint_id=str(spec.endpoint_id), generation=spec.generation, replicas=plan.replicas, process=plan.process,
        memory_bytes=plan.memory_bytes, threads=plan.threads, api_key=SecretStr(key) if key else None,
    )  # fmt: skip
