"""From the input of a deploy to what the runtime shall run. The deploy job and `reconcile` make the same of the same input."""

from pydantic import SecretStr

from services.cluster.engines.base import DeployConfig, EnginePlan, ModelSource
from services.cluster.engines.registry import engine_for
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Workload
from shared.contracts.deployments import DeploySpec
from shared.jobs.outcomes import Permanent


async def plan_of(tools: ClusterTools, spec: DeploySpec) -> EnginePlan:
    """Raises Permanent: no engine runs this model, or this machine lacks something that the engine needs."""
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
    return engine.plan(source, config, cpus=facts.nodes[0].cpus)


def workload(spec: DeploySpec, plan: EnginePlan, key: str | None, *, replicas: int | None = None) -> Workload:
    """`replicas` other than the plan's: workers were added or removed since."""
    return Workload(
        endpoint_id=str(spec.endpoint_id), generation=spec.generation, process=plan.process,
        replicas=plan.replicas if replicas is None else replicas, memory_bytes=plan.memory_bytes, threads=plan.threads,
        api_key=SecretStr(key) if key else None,
    )  # fmt: skip
