"""Register a cluster: read its kubeconfig, refuse what is unsafe, connect, check version and permissions, inspect, save."""

from typing import Any

from pydantic import BaseModel

from services.cluster.jobs import register_steps
from services.cluster.jobs.register_steps import Access, Connection
from services.cluster.jobs.tools import ClusterTools
from shared.contracts.clusters import KubeconfigSummary, ServerVersion
from shared.contracts.deployments import Registered, RegisterSpec
from shared.errors import Problem
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent
from shared.jobs.run import Run, Step
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy

MAX_NODES = 30  # that are kept one by one: a step's result is bounded
NETWORK = RetryPolicy(attempts=3, delay=1.0, timeout=60.0)


class Inspected(BaseModel):
    spec: RegisterSpec
    access: Access
    facts: dict[str, Any]


async def _kubeconfig(ctx: Step, spec: RegisterSpec, policy: KubeconfigPolicy) -> Kubeconfig:
    """Asked for anew by each step, so that it is in no step's result."""
    tools: ClusterTools = ctx.tools
    content = await tools.app.kubeconfig(ctx.job_id, spec.cluster_id)
    try:
        return parse(content, policy)
    except Problem as problem:
        raise Permanent(problem.code, problem.detail) from problem


def _addresses(ctx: Step) -> ServerPolicy:
    settings = ctx.tools.settings
    return ServerPolicy(allow_private=settings.allow_private_clusters, allow_loopback=settings.allow_loopback_clusters)


async def _connection(ctx: Step, spec: RegisterSpec) -> Connection:
    addresses = _addresses(ctx)
    # Whether its server need not prove itself was the user's word at the wizard's step, kept in the file itself.
    kubeconfig = await _kubeconfig(ctx, spec, KubeconfigPolicy(allow_insecure=True, addresses=addresses))
    return Connection(kubeconfig, addresses)


@step("Read the kubeconfig", weight=1)
async def read(ctx: Step, spec: RegisterSpec) -> KubeconfigSummary:
    connection = await _connection(ctx, spec)
    return connection.kubeconfig.summary


@step("Connect", weight=1, retry=NETWORK)
async def connect(ctx: Step, spec: RegisterSpec) -> ServerVersion:
    return await register_steps.connect(await _connection(ctx, spec), ctx.progress)


@step("Check version and permissions", weight=1, retry=NETWORK)
async def check_access(ctx: Step, spec: RegisterSpec) -> Access:
    tools: ClusterTools = ctx.tools
    access = await register_steps.check_access(await _connection(ctx, spec), ctx.progress)
    await tools.app.claim_cluster(ctx.job_id, spec.cluster_id, access.uid)
    return access


@step("Inspect the nodes", weight=2, retry=NETWORK)
async def inspect(ctx: Step, spec: RegisterSpec) -> dict[str, Any]:
    found = await register_steps.inspect_cluster(await _connection(ctx, spec), ctx.progress)
    facts = found.model_dump(mode="json", exclude={"nodes"})
    nodes = [node.model_dump(mode="json", exclude_none=True) for node in found.nodes[:MAX_NODES]]
    return {**facts, "totals": found.totals().model_dump(mode="json"), "nodes": nodes, "node_count": len(found.nodes)}


@step("Save", weight=1)
async def save(ctx: Step, inspected: Inspected) -> Registered:
    access = inspected.access
    return Registered(uid=access.uid, version=access.version.version, facts=inspected.facts)


@job("register_cluster", steps=[read, connect, check_access, inspect, save], slots=4, deadline=3600)
async def register_cluster(run: Run, spec: RegisterSpec) -> Registered:
    await run.step(read, spec)
    await run.step(connect, spec)
    access = await run.step(check_access, spec)
    facts = await run.step(inspect, spec)
    registered: Registered = await run.step(save, Inspected(spec=spec, access=access, facts=facts))
    return registered
