"""Register a cluster: read its kubeconfig, refuse what is unsafe, connect, check version and permissions, inspect, save.

The same steps try new credentials of a cluster, and look at one anew.
"""

from typing import Any

from pydantic import BaseModel

from services.cluster.jobs import register_steps
from services.cluster.jobs.register_steps import Access, Connection
from services.cluster.jobs.tools import ClusterTools
from shared.contracts.clusters import ClusterSpec, CredentialsChecked, KubeconfigSummary, Registered, ServerVersion
from shared.errors import Problem
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent
from shared.jobs.run import Run, Step
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse

NETWORK = RetryPolicy(attempts=3, delay=1.0, timeout=60.0)


class Inspected(BaseModel):
    access: Access
    facts: dict[str, Any]


class Tried(Inspected):
    summary: KubeconfigSummary


async def _kubeconfig(ctx: Step, spec: ClusterSpec, policy: KubeconfigPolicy) -> Kubeconfig:
    """Asked for anew by each step, so that it is in no step's result."""
    tools: ClusterTools = ctx.tools
    content = await tools.app.kubeconfig(ctx.job_id, spec.cluster_id)
    try:
        return parse(content, policy)
    except Problem as problem:
        raise Permanent(problem.code, problem.detail) from problem


async def _connection(ctx: Step, spec: ClusterSpec) -> Connection:
    addresses = ctx.tools.addresses
    # Whether its server need not prove itself was the user's word at the wizard's step, kept in the file itself.
    kubeconfig = await _kubeconfig(ctx, spec, KubeconfigPolicy(allow_insecure=True, addresses=addresses))
    return Connection(kubeconfig, addresses)


@step("Read the kubeconfig", weight=1)
async def read(ctx: Step, spec: ClusterSpec) -> KubeconfigSummary:
    connection = await _connection(ctx, spec)
    return connection.kubeconfig.summary


@step("Connect", weight=1, retry=NETWORK)
async def connect(ctx: Step, spec: ClusterSpec) -> ServerVersion:
    return await register_steps.connect(await _connection(ctx, spec), ctx.progress)


@step("Check version and permissions", weight=1, retry=NETWORK)
async def check_access(ctx: Step, spec: ClusterSpec) -> Access:
    tools: ClusterTools = ctx.tools
    access = await register_steps.check_access(await _connection(ctx, spec), ctx.progress)
    await tools.app.claim_cluster(ctx.job_id, spec.cluster_id, access.uid)
    return access


@step("Inspect the nodes", weight=2, retry=NETWORK)
async def inspect(ctx: Step, spec: ClusterSpec) -> dict[str, Any]:
    return register_steps.facts_of(await register_steps.inspect_cluster(await _connection(ctx, spec), ctx.progress))


@step("Save", weight=1)
async def save(ctx: Step, inspected: Inspected) -> Registered:
    access = inspected.access
    return Registered(uid=access.uid, version=access.version.version, facts=inspected.facts)


@step("Take the new credentials", weight=1)
async def replace(ctx: Step, tried: Tried) -> CredentialsChecked:
    """The app puts them in the place of the old ones when it records the job's end."""
    found = Registered(uid=tried.access.uid, version=tried.access.version.version, facts=tried.facts)
    return CredentialsChecked(**dict(found), access=tried.summary.model_dump(mode="json"))


@job("register_cluster", steps=[read, connect, check_access, inspect, save], slots=4, deadline=3600)
async def register_cluster(run: Run, spec: ClusterSpec) -> Registered:
    await run.step(read, spec)
    await run.step(connect, spec)
    access = await run.step(check_access, spec)
    facts = await run.step(inspect, spec)
    registered: Registered = await run.step(save, Inspected(access=access, facts=facts))
    return registered


@job("change_credentials", steps=[read, connect, check_access, inspect, replace], slots=4, deadline=3600)
async def change_credentials(run: Run, spec: ClusterSpec) -> CredentialsChecked:
    summary = await run.step(read, spec)
    await run.step(connect, spec)
    access = await run.step(check_access, spec)
    facts = await run.step(inspect, spec)
    checked: CredentialsChecked = await run.step(replace, Tried(access=access, facts=facts, summary=summary))
    return checked


@job("inspect_cluster", steps=[connect, check_access, inspect, save], slots=4, deadline=3600)
async def inspect_cluster(run: Run, spec: ClusterSpec) -> Registered:
    await run.step(connect, spec)
    access = await run.step(check_access, spec)
    facts = await run.step(inspect, spec)
    found: Registered = await run.step(save, Inspected(access=access, facts=facts))
    return found
