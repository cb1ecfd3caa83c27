"""What is done to registered clusters: new credentials, a new inspection, what nobody knows taken away, deletion.

What takes time is a job; `outcomes` has what its end means for the cluster's row.
"""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from pydantic import BaseModel

from services.app.audit import service as audit
from services.app.clusters import onboarding, repository
from services.app.clusters.service import CLUSTERS, existing, forget
from services.app.clusters.tables import ClusterAccessRow, ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository as endpoints
from services.app.endpoints import service as endpoint_service
from services.app.identity.caller import Caller
from services.app.jobs import repository as jobs
from services.app.resources import Revisions, check_revision
from services.app.wizards.contract import Visit
from shared.contracts.clusters import ClusterSpec, Orphan
from shared.errors import Problem
from shared.http.bodies import FormBool
from shared.http.multipart import UploadedFile
from shared.jobs.ledger import JobRequest, JobView

IN_THE_WAY = ("register_cluster", onboarding.CHANGE_CREDENTIALS, "delete_cluster")


class NewCredentials(BaseModel):
    """The kubeconfig as a file of a form, or as a text in JSON."""

    model_config = {"extra": "forbid"}

    configuration_file: UploadedFile | str
    allow_insecure_tls: FormBool = False

    @property
    def content(self) -> bytes:
        given = self.configuration_file
        return given.encode() if isinstance(given, str) else given.content


async def change_credentials(
    visit: Visit, cluster_id: UUID, given: NewCredentials, expected: Revisions | None
) -> JobView:
    """Try a new kubeconfig; the job puts it in the place of the old one. A cluster in `error` is registered by it."""
    cluster = await _registered(visit, cluster_id, expected)
    kubeconfig = onboarding.read(visit.context.settings, given.content, insecure=given.allow_insecure_tls)
    await _check_nothing_runs(visit, cluster)
    if cluster.state == "error":
        await onboarding.check_name_free(visit.session, cluster.name)
        cluster.state, cluster.reason = "registering", None
    await repository.forget_access(visit.session, cluster_id)
    request = _request(visit, cluster, onboarding.CHANGE_CREDENTIALS)
    sealed = visit.context.keyring.seal(kubeconfig.canonical(), onboarding.key_context(cluster_id))
    visit.session.add(ClusterAccessRow(id=request.id, cluster_id=cluster_id, sealed=sealed))
    await visit.session.flush()
    await audit.record(
        visit.session, visit.caller, "cluster.change_credentials", "cluster", cluster_id,
        server=kubeconfig.summary.server, auth=kubeconfig.summary.auth,
    )  # fmt: skip
    return await visit.context.ledger.submit(visit.session, request)


async def inspect(visit: Visit, cluster_id: UUID) -> JobView:
    """Look at the cluster anew. While that is being done already, the answer is that job."""
    return await _once(visit, cluster_id, "inspect_cluster", "cluster.inspect")


async def delete(visit: Visit, cluster_id: UUID, expected: Revisions | None) -> JobView | None:
    """Take away what is ours of a cluster without endpoints, then forget it: the job. None: it has been forgotten."""
    cluster = await _registered(visit, cluster_id, expected)
    serving = await endpoints.of_cluster(visit.session, cluster_id)
    if serving:
        names = ", ".join(endpoint.name for endpoint in serving[:5])
        raise Problem("in_use", f"Endpoints still run on this cluster: {names}.")
    await _check_nothing_runs(visit, cluster)
    await audit.record(visit.session, visit.caller, "cluster.delete", "cluster", cluster_id, name=cluster.name)
    if cluster.state == "error":  # its registration has failed: nothing was ever made there
        await forget(visit.session, cluster, None)
        return None
    cluster.state, cluster.reason = "deleting", None
    cluster.revision += 1
    await visit.session.flush()
    visit.context.hub.publish_after_commit(visit.session, CLUSTERS)
    return await visit.context.ledger.submit(visit.session, _request(visit, cluster, "delete_cluster"))


async def force_delete(visit: Visit, cluster_id: UUID, expected: Revisions | None) -> None:
    """Forget a cluster that is gone for good, together with its endpoints, whatever its state. Nobody asks the cluster."""
    cluster = await _registered(visit, cluster_id, expected)
    gone = await endpoints.of_cluster(visit.session, cluster_id)
    for endpoint in gone:
        endpoint.phase, endpoint.deleted_at = "deleted", datetime.now(UTC)
        endpoint.reason = f"The cluster {cluster.name} was deleted by force."
        endpoint_service.settle(endpoint)
        await audit.record(
            visit.session, visit.caller, "endpoint.delete", "endpoint", endpoint.id,
            project_id=endpoint.project_id, cluster_id=str(cluster_id), forced=True,
        )  # fmt: skip
    names = [endpoint.name for endpoint in gone]
    await audit.record(
        visit.session, visit.caller, "cluster.delete", "cluster", cluster_id,
        name=cluster.name, forced=True, endpoints=names,
    )  # fmt: skip
    await forget(visit.session, cluster, None)
    visit.context.hub.publish_after_commit(visit.session, CLUSTERS, endpoint_service.ENDPOINTS)


async def orphans(context: AppContext, caller: Caller, cluster_id: UUID) -> list[Orphan]:
    """What is ours on the cluster and of no endpoint that is known. The cluster is asked first: what is there has its row.

    It may be slow to answer: no transaction is open meanwhile.
    """
    async with context.database.transaction() as session:
        await _registered(Visit(context, session, caller), cluster_id)
    found = await context.clusters.leftovers(cluster_id)
    async with context.database.transaction() as session:
        known = {str(one) for one in await endpoints.ids_of_cluster(session, cluster_id)}
    return [one for one in found if one.endpoint_id not in known]


async def remove_orphans(visit: Visit, cluster_id: UUID) -> JobView:
    """Take the orphans away. While that is being done already, the answer is that job."""
    return await _once(visit, cluster_id, "remove_orphans", "cluster.remove_orphans")


async def _once(visit: Visit, cluster_id: UUID, kind: str, action: str) -> JobView:
    """The job of this kind that is at work on the cluster, else a new one; `action` is its name in the audit log."""
    cluster = await _registered(visit, cluster_id)
    running = await repository.live_job(visit.session, cluster_id, kind)
    if running is not None:
        return await jobs.visible(visit.session, visit.caller, running)
    if cluster.state not in ("available", "unavailable"):
        raise Problem("cluster_not_ready", f"The cluster is {cluster.state}.")
    await audit.record(visit.session, visit.caller, action, "cluster", cluster_id)
    return await visit.context.ledger.submit(visit.session, _request(visit, cluster, kind))


async def _registered(visit: Visit, cluster_id: UUID, expected: Revisions | None = None) -> ClusterRow:
    """The cluster, locked, for those who may change it; this machine is refused."""
    visit.caller.require("operator")
    visit.caller.require_unbound()
    cluster = await existing(visit.session, cluster_id, lock=True)
    check_revision(cluster, expected)
    if cluster.kind == "local":
        raise Problem("cluster_is_local", "This machine needs none of this, and stays registered.")
    return cluster


async def _check_nothing_runs(visit: Visit, cluster: ClusterRow) -> None:
    running = await repository.live_job(visit.session, cluster.id, *IN_THE_WAY)
    if running is not None:
        raise Problem("conflict", f"The job {running} works on the cluster; wait for its end, or cancel it first.")


def _request(visit: Visit, cluster: ClusterRow, kind: str) -> JobRequest:
    return JobRequest(
        visit.context.jobs.latest(kind), ClusterSpec(cluster_id=cluster.id, name=cluster.name),
        owner_id=visit.caller.user_id, key_id=visit.caller.key_id, resource_type="cluster", resource_id=cluster.id,
        id=uuid4(),
    )  # fmt: skip
