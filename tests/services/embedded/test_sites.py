"""Which site a job gets for a cluster, and what becomes of a delete when the cluster has been forgotten."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.app.clusters import onboarding
from services.app.context import AppContext
from services.app.internal import AppAccess
from services.cluster.jobs.delete_endpoint import remove, remove_files
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.kubernetes import KubernetesSite
from services.cluster.sites.local import LocalSite
from shared.contracts.deployments import RemoveSpec
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.tables import JobRow
from tests.services.app import rows
from tests.testbed.certificates import as_yaml, kubeconfig

NOWHERE = as_yaml(kubeconfig(cluster={"server": "https://127.0.0.1:9"}))


class Attempt:
    """What a step sees of itself."""

    def __init__(self, tools: ClusterTools, job_id: UUID) -> None:
        self.tools, self.job_id, self.key, self.attempt = tools, job_id, "remove", 1

    def progress(self, percent: float | None = None, message: str | None = None) -> None: ...


@pytest.fixture
def tools(app_context: AppContext, runtime: LocalRuntime, tmp_path: Path) -> ClusterTools:
    machine = LocalSite(uuid4(), runtime, tmp_path / "models", app_context.objects)
    settings = app_context.settings.model_copy(update={"allow_loopback_clusters": True})
    return ClusterTools(AppAccess(app_context), app_context.objects, settings, machine)


async def known(context: AppContext, cluster_id: UUID, **values: Any) -> UUID:
    """The cluster, and a running job that names it; the job's id."""
    sealed = context.keyring.seal(NOWHERE, onboarding.key_context(cluster_id))
    job = JobRow(id=uuid4(), kind="delete_endpoint", version=1, state="running", input={"cluster_id": str(cluster_id)})
    await rows.insert(context.database, rows.cluster(id=cluster_id, sealed=sealed, **values), job)
    return job.id


async def test_a_registered_cluster_is_one_of_pods(tools: ClusterTools, app_context: AppContext) -> None:
    cluster = uuid4()
    job = await known(app_context, cluster, ingress_url="https://in.example")
    site = await tools.site(job, cluster)
    again = await tools.site(job, cluster)
    assert isinstance(site, KubernetesSite)
    assert isinstance(again, KubernetesSite)
    assert site.runtime.client is again.runtime.client
    assert site.runtime.owner == str(cluster)
    with pytest.raises(Permanent, match="does not name"):
        await tools.site(uuid4(), cluster)
    await tools.clients.aclose()


async def test_this_machine_is_one_of_processes(tools: ClusterTools, app_context: AppContext) -> None:
    job = await known(app_context, tools.local.id, kind="local")
    assert await tools.site(job, tools.local.id) is tools.local


async def test_a_cluster_that_was_forgotten_has_nothing_to_be_deleted(
    tools: ClusterTools, app_context: AppContext
) -> None:
    cluster, endpoint = uuid4(), uuid4()
    job = await known(app_context, cluster, state="deleted")
    spec = RemoveSpec(endpoint_id=endpoint, cluster_id=cluster, generation=2)
    await remove.fn(Attempt(tools, job), spec)
    removed = await remove_files.fn(Attempt(tools, job), spec)
    assert removed.endpoint_id == str(endpoint)


async def test_a_cluster_that_cannot_be_reached_keeps_its_endpoint(
    tools: ClusterTools, app_context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is told, and the step is tried again: by its policy, then by whoever retries the job."""
    monkeypatch.setattr("services.cluster.jobs.patience.IN_PLACE", 0.0)
    cluster = uuid4()
    job = await known(app_context, cluster)
    with pytest.raises(Retry, match=r"127\.0\.0\.1:9 refuses connections") as raised:
        await remove.fn(Attempt(tools, job), RemoveSpec(endpoint_id=uuid4(), cluster_id=cluster, generation=2))
    assert raised.value.code == "cluster_refused"
    await tools.clients.aclose()
