"""Leave a cluster: take away all that is ours there, by our labels and nothing else. The app then forgets the cluster.

Beside it, what nobody knows any more (orphans) is taken away from a cluster that stays.
"""

from services.cluster.jobs.patience import PATIENT, waits_for_cluster
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.contracts.clusters import ClusterSpec, EndpointsRemoved
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step


async def _runtime(ctx: Step, spec: ClusterSpec) -> KubernetesRuntime:
    tools: ClusterTools = ctx.tools
    kubeconfig = await tools.app.kubeconfig(ctx.job_id, spec.cluster_id)
    client = tools.clients.client(spec.cluster_id, kubeconfig, tools.addresses)
    return KubernetesRuntime(client, str(spec.cluster_id))


async def _remove(ctx: Step, runtime: KubernetesRuntime, endpoint_ids: list[str]) -> None:
    for count, endpoint_id in enumerate(endpoint_ids):
        ctx.progress(100 * count / len(endpoint_ids), f"Removing what is left of {endpoint_id}")
        await runtime.remove(endpoint_id)


@step("Remove what is ours", weight=1, retry=PATIENT)
@waits_for_cluster
async def remove_all(ctx: Step, spec: ClusterSpec) -> EndpointsRemoved:
    runtime = await _runtime(ctx, spec)
    found = [one.endpoint_id for one in await runtime.orphans(known=())]
    await _remove(ctx, runtime, found)
    return EndpointsRemoved(cluster_id=spec.cluster_id, endpoints=found)


@step("Remove what nobody knows", weight=1, retry=PATIENT)
@waits_for_cluster
async def remove_unknown(ctx: Step, spec: ClusterSpec) -> EndpointsRemoved:
    """The cluster is asked before the app: whatever was there then has its row, unless it is an orphan."""
    tools: ClusterTools = ctx.tools
    runtime = await _runtime(ctx, spec)
    found = await runtime.orphans(known=())
    known = set(await tools.app.known_endpoints(ctx.job_id, spec.cluster_id))
    orphans = [one.endpoint_id for one in found if one.endpoint_id not in known]
    await _remove(ctx, runtime, orphans)
    return EndpointsRemoved(cluster_id=spec.cluster_id, endpoints=orphans)


@job("delete_cluster", steps=[remove_all], slots=4, deadline=2 * 3600)
async def delete_cluster(run: Run, spec: ClusterSpec) -> EndpointsRemoved:
    removed: EndpointsRemoved = await run.step(remove_all, spec)
    return removed


@job("remove_orphans", steps=[remove_unknown], slots=4, deadline=2 * 3600)
async def remove_orphans(run: Run, spec: ClusterSpec) -> EndpointsRemoved:
    removed: EndpointsRemoved = await run.step(remove_unknown, spec)
    return removed
