"""Watches over a real cluster: states follow it through faults, what others change is put back, one process watches."""

import re
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.app.clusters import repository as clusters
from services.app.clusters.service import CLUSTERS
from services.app.context import AppContext
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.kubernetes.watcher import Watcher
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.local import LocalSite
from tests.services.app import rows
from tests.services.app.conftest import People
from tests.services.embedded.watched import Watched, running, until
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need

NAMESPACE = "/api/v1/namespaces/stepway"
APPS = "/apis/apps/v1/namespaces/stepway"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """One that may be broken."""
    need("kube", "coredns", pods=True, images=("python",))
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load("python")
        yield cluster


@pytest.fixture
async def stranger(app_context: AppContext, people: People, own: Cluster) -> AsyncIterator[Watched]:
    """Not registered yet."""
    made = Watched(app_context, own, await people.project("p"))
    yield made
    await made.clients.aclose()


@pytest.fixture
async def watched(stranger: Watched, own: Cluster) -> Watched:
    await stranger.register(own.api.kubeconfig(token=own.api.token()))
    return stranger


def edit(own: Cluster, path: str, change: dict[str, Any]) -> None:
    own.api.admin.patch(path, headers=MERGE, json=change).raise_for_status()


def deployment(endpoint_id: UUID) -> str:
    return f"{APPS}/deployments/ep-{endpoint_id}"


async def test_what_others_change_is_shown_put_back_and_told(watched: Watched, own: Cluster) -> None:
    endpoint = await watched.endpoint()
    async with watched.watching():
        await watched.until_endpoint(endpoint, "running")
        edit(own, deployment(endpoint), {"spec": {"replicas": 2}})
        told = await watched.until_told(endpoint, "healed")
        assert "spec.replicas" in (told[0].message or "")
        await watched.until_endpoint(endpoint, "running")
        for path in (deployment(endpoint), f"{NAMESPACE}/services/ep-{endpoint}", f"{NAMESPACE}/secrets/ep-{endpoint}"):
            own.api.admin.delete(path).raise_for_status()
        told = await watched.until_told(endpoint, "healed", 2)
        assert "deleted" in (told[1].message or "")
        await watched.until_endpoint(endpoint, "running")
        # The object that owns all the others: nothing is left, and the endpoint is deployed anew.
        own.api.admin.delete(f"{NAMESPACE}/configmaps/ep-{endpoint}").raise_for_status()
        await watched.until_told(endpoint, "healed", 3)
        await watched.until_endpoint(endpoint, "running")
    states = [one.state for one in await watched.events(endpoint) if one.type == "state"]
    assert "degraded" in states
    assert states[-1] == "running"


async def test_repairs_come_later_and_later_and_only_where_they_are_wanted(watched: Watched, own: Cluster) -> None:
    endpoint = await watched.endpoint()
    await set_heal(watched, False)
    async with watched.watching():
        await watched.until_endpoint(endpoint, "running")
        edit(own, deployment(endpoint), {"spec": {"minReadySeconds": 1, "revisionHistoryLimit": 7}})
        shown = await watched.until_endpoint(endpoint, "degraded", "Somebody changed")
        assert "spec." in (shown.reason or "")
        assert not [one for one in await watched.events(endpoint) if one.type == "healed"]
        await set_heal(watched, True)
        for count in range(1, 4):
            told = await watched.until_told(endpoint, "healed", count)
            await watched.until_endpoint(endpoint, "running")
            edit(own, deployment(endpoint), {"spec": {"revisionHistoryLimit": 10 + count}})
        pauses = [(later.at - sooner.at).total_seconds() for sooner, later in pairwise(told)]
        assert pauses[0] > 1.5
        assert pauses[1] > 3.0
        assert "Repair 3 in a row; not again within 4 s" in (told[2].message or "")


async def set_heal(watched: Watched, heal: bool) -> None:
    async with watched.context.database.transaction() as session:
        row = await clusters.get(session, watched.cluster_id, lock=True)
        assert row is not None
        row.heal = heal
        watched.context.hub.publish_after_commit(session, CLUSTERS)


async def test_an_endpoint_that_a_job_works_on_is_left_to_it(watched: Watched, own: Cluster) -> None:
    busy = await watched.endpoint(phase="updating", state="updating")
    serving = await watched.endpoint()
    async with watched.watching():
        await watched.until_endpoint(serving, "running")
        for one in (busy, serving):
            edit(own, deployment(one), {"spec": {"replicas": 2}})
        await watched.until_told(serving, "healed")
        assert own.api.get(deployment(busy))["spec"]["replicas"] == 2


async def test_jobs_wait_by_the_watch_of_their_process(watched: Watched, own: Cluster, tmp_path: Path) -> None:
    endpoint, objects = await watched.endpoint(), watched.context.objects
    machine = LocalSite(uuid4(), LocalRuntime(tmp_path), tmp_path, objects)
    async with watched.watching() as watches:
        await watched.until_endpoint(endpoint, "running")
        assert watches.states() == {"following": 1, "cut_off": 0, "starting": 0}
        tools = ClusterTools(watched.app, objects, watched.context.settings, machine, watchers=watched.watchers)
        runtime = tools.kubernetes(watched.cluster_id, own.api.access_kubeconfig(), None).runtime
        await runtime.scale(str(endpoint), 2, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(Watcher, "__aenter__")  # none is begun for it
            assert len((await runtime.wait_ready(str(endpoint), 2, 60)).ready) == 2
    await tools.clients.aclose()
    assert watched.watchers == {}


async def test_an_api_server_that_goes_and_returns(watched: Watched, own: Cluster) -> None:
    endpoint = await watched.endpoint()
    async with watched.watching() as watches:
        await watched.until_endpoint(endpoint, "running")
        own.space.kill("kube-apiserver")
        try:
            row = await watched.until_cluster("unavailable")
            assert re.search("refuses connections|closed the connection|cannot be reached", row.reason or "")
            shown = await watched.until_endpoint(endpoint, "unavailable", "The cluster")
            assert row.name in (shown.reason or "")
            assert shown.observed["workers"]  # what was last seen
            assert watches.states() == {"following": 0, "cut_off": 1, "starting": 0}
        finally:
            own.restart("kube-apiserver")
        await watched.until_cluster("available")
        assert (await watched.until_endpoint(endpoint, "running")).reason is None


async def test_a_revoked_token_and_new_credentials(stranger: Watched, own: Cluster) -> None:
    watched = stranger
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bound", "namespace": "stepway"}}
    own.api.apply(f"{NAMESPACE}/secrets", secret)
    bound = {"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "bound"}}
    answer = own.api.admin.post(f"{NAMESPACE}/serviceaccounts/stepway/token", json={"spec": bound})
    answer.raise_for_status()
    await watched.register(own.api.kubeconfig(token=answer.json()["status"]["token"]))
    async with watched.watching():
        await until(watched.row, lambda row: row.facts.get("node_count") == 1)  # inspected, as it never was
        own.api.admin.delete(f"{NAMESPACE}/secrets/bound").raise_for_status()
        await watched.until_cluster("unavailable", "does not accept the credentials")
        async with watched.context.database.transaction() as session:
            row = await clusters.get(session, watched.cluster_id, lock=True)
            assert row is not None
            row.sealed = watched.seal(own.api.kubeconfig(token=own.api.token()))
            watched.context.hub.publish_after_commit(session, CLUSTERS)
        await watched.until_cluster("available")


async def test_lost_permissions_are_named(watched: Watched, own: Cluster) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/stepway/roles/stepway"
    rules = own.api.get(path)["rules"]
    async with watched.watching():
        await until(watched.row, lambda row: row.observed_at is not None)
        edit(own, path, {"rules": [rule for rule in rules if "jobs" not in rule["resources"]]})
        try:
            row = await watched.until_cluster("unavailable", "The account may not: ")
            assert "jobs.batch in namespace stepway" in (row.reason or "")
        finally:
            edit(own, path, {"rules": rules})
        await watched.until_cluster("available")


async def test_another_cluster_at_the_address_is_not_touched(watched: Watched) -> None:
    endpoint = await watched.endpoint()
    async with watched.context.database.transaction() as session:
        row = await clusters.get(session, watched.cluster_id, lock=True)
        assert row is not None
        row.uid = "another"
    async with watched.watching():
        await watched.until_cluster("unavailable", "is another cluster")
        await watched.until_endpoint(endpoint, "unavailable", "is another cluster")


async def test_two_processes_keep_one_watch_of_each_cluster(watched: Watched) -> None:
    other = Watched(watched.context, watched.cluster, watched.project)
    first, second = watched.watches(await watched.claims()), watched.watches(claims := await watched.claims())

    async def watches() -> list[UUID]:
        return sorted([*first.watched, *second.watched])

    async with running(second):
        await until(watches, lambda found: found == [watched.cluster_id])
        async with running(first):
            kubeconfig = watched.cluster.api.kubeconfig(token=watched.cluster.api.token())
            sealed = other.seal(kubeconfig)
            await rows.insert(watched.context.database, rows.cluster(id=other.cluster_id, sealed=sealed))
            both = sorted([watched.cluster_id, other.cluster_id])
            await until(watches, lambda found: found == both)
            await claims.leave()  # as one that has died
            await until(watches, lambda _: sorted(first.watched) == both and not second.watched)


async def test_a_cluster_that_is_deleted_is_watched_no_more(watched: Watched) -> None:
    async with watched.watching() as watches:

        async def seen() -> list[UUID]:
            return list(watches.watched)

        await until(seen, lambda found: found == [watched.cluster_id])
        async with watched.context.database.transaction() as session:
            row = await clusters.get(session, watched.cluster_id, lock=True)
            assert row is not None
            row.state = "deleting"
            watched.context.hub.publish_after_commit(session, CLUSTERS)
        await until(seen, lambda found: not found)
