"""A way in by a Gateway, on a real API server that has the kinds of the Gateway API: seen, chosen, made, healed, removed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cluster.jobs.register_steps import facts_of
from services.cluster.runtimes.base import Observation
from services.cluster.runtimes.containers import Exposure
from services.cluster.runtimes.kubernetes.inspect import gateway, gateways
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import Pace
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.clusters import GatewayFacts
from shared.objects import DirectoryStore
from shared.settings import Settings
from tests.services.cluster.runtimes.kubernetes.support import connected, workload
from tests.services.cluster.sites.test_kubernetes import IMAGES, spec_of
from tests.testbed.kube import ApiServer, collection, running
from tests.testbed.machine import need

CRDS = Path(__file__).parents[4] / "testbed" / "gateway.yaml"
API = "/apis/gateway.networking.k8s.io/v1/namespaces/stepway"
ROUTES, GATEWAYS = f"{API}/httproutes", f"{API}/gateways"
CLASSES = "/apis/networking.k8s.io/v1/ingressclasses"
WAY_IN = Exposure(url="http://203.0.113.9", host="routed.stepway.internal", gateway="public")


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server of its own: the kinds would be seen by others' tests."""
    need("kube")
    with running() as server:
        server.apply("/api/v1/namespaces/stepway/serviceaccounts", account())
        server.apply_all(CRDS.read_text())
        until_served(server)
        yield server


@pytest.fixture
async def runtime(server: ApiServer) -> AsyncIterator[KubernetesRuntime]:
    async with connected(server) as runtime:
        yield runtime
        await runtime.remove_all()
        assert await runtime.orphans(known=()) == []
    for path in (GATEWAYS, CLASSES):
        for one in server.get(path)["items"]:
            server.admin.delete(f"{path}/{one['metadata']['name']}").raise_for_status()


def account() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "stepway"}}


def until_served(server: ApiServer) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            for path in (ROUTES, GATEWAYS):
                server.get(path)
        except httpx.HTTPStatusError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the kinds of the Gateway API are not served")


def made(name: str, *listeners: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": "stepway"},
        "spec": {
            "gatewayClassName": "some",
            "listeners": [{"name": f"l{n}", **one} for n, one in enumerate(listeners)],
        },
    }


HTTP = {"port": 80, "protocol": "HTTP"}
TCP = {"port": 5432, "protocol": "TCP"}


async def test_gateways_that_take_our_routes_are_among_the_facts(runtime: KubernetesRuntime, server: ApiServer) -> None:
    for one in (made("public", HTTP, TCP), made("named", {**HTTP, "hostname": "*.example.com"}), made("database", TCP)):
        server.apply(GATEWAYS, one)
    found = await runtime.inspection()
    assert found.gateways == [
        GatewayFacts(name="named", gateway_class="some", hosts=["*.example.com"]),
        GatewayFacts(name="public", gateway_class="some", hosts=["*"]),
    ]
    assert facts_of(found)["gateways"][1] == {"name": "public", "gateway_class": "some", "hosts": ["*"]}


async def test_an_account_that_may_not_see_gateways_sees_none(server: ApiServer) -> None:
    async with connected(server, token=server.token("default")) as other:
        assert await gateways(other.client) == []


@pytest.mark.parametrize(
    ("allowed", "hosts"),
    [
        ({}, ["*"]),
        ({"namespaces": {"from": "All"}, "kinds": [{"kind": "HTTPRoute"}]}, ["*"]),
        ({"namespaces": {"from": "Selector"}}, []),
        ({"namespaces": {"from": "None"}}, []),
        ({"kinds": [{"kind": "GRPCRoute"}]}, []),
    ],
)
def test_a_listener_tells_whose_routes_it_takes(allowed: dict[str, Any], hosts: list[str]) -> None:
    assert gateway(made("one", {**HTTP, "allowedRoutes": allowed})).hosts == hosts


def test_a_listener_with_a_host_takes_only_what_is_below() -> None:
    assert GatewayFacts(name="a", gateway_class="b", hosts=["*.stepway.internal"]).takes("one.stepway.internal")
    assert GatewayFacts(name="a", gateway_class="b", hosts=["one.stepway.internal"]).takes("one.stepway.internal")
    assert not GatewayFacts(name="a", gateway_class="b", hosts=["*.example.com"]).takes("one.stepway.internal")


async def test_an_ingress_class_goes_before_a_gateway_and_a_gateway_before_nothing(
    runtime: KubernetesRuntime, server: ApiServer, tmp_path: Path
) -> None:
    node = {"capacity": {}, "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"}}
    conditions = [{"type": "Ready", "status": "True"}]
    storage = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "some"}}
    server.apply(collection(storage), {**storage, "provisioner": "example.com/some"})
    server.add_node("cpu-1", status={**node, "conditions": conditions})
    objects = DirectoryStore(tmp_path / "objects")
    site = KubernetesSite(runtime, Settings(**IMAGES), objects, ingress_url="https://in.example")
    spec = await spec_of(objects)
    host = f"{spec.endpoint_id}.stepway.internal"

    async def exposure() -> Exposure | None:
        found = (await site.plan(spec, dry=True)).exposure
        assert found is not None
        assert (found.url, found.host) == ("https://in.example", host)
        return found

    server.apply(GATEWAYS, made("elsewhere", {**HTTP, "hostname": "*.example.com"}))
    neither = await exposure()
    server.apply(GATEWAYS, made("public", HTTP))
    by_gateway = await exposure()
    ingress = {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "nginx"}}
    server.apply(CLASSES, {**ingress, "spec": {"controller": "k8s.io/ingress-nginx"}})
    by_ingress = await exposure()
    assert [(one.ingress_class, one.gateway) for one in (neither, by_gateway, by_ingress) if one] == [
        (None, None),
        (None, "public"),
        ("nginx", None),
    ]
    alone = KubernetesSite(runtime, Settings(**IMAGES), objects)
    assert (await alone.plan(spec, dry=True)).exposure is None


async def test_a_route_is_tried_made_healed_and_removed(runtime: KubernetesRuntime, server: ApiServer) -> None:
    asked = workload("routed", exposure=WAY_IN)
    tried = await runtime.preview(asked)
    assert [problem for problem in tried.problems if "HTTPRoute" in problem] == []
    assert {"HTTPRoute"} == {one["kind"] for one in tried.manifests} & {"HTTPRoute", "Ingress"}
    assert server.get(ROUTES)["items"] == []
    await runtime.apply(asked)
    (route,) = server.get(ROUTES)["items"]
    assert [one["name"] for one in route["spec"]["parentRefs"]] == ["public"]
    assert route["spec"]["hostnames"] == ["routed.stepway.internal"]
    backend = route["spec"]["rules"][0]["backendRefs"][0]
    assert (backend["kind"], backend["name"], backend["port"]) == ("Service", "ep-routed", 80)
    assert server.get("/apis/networking.k8s.io/v1/namespaces/stepway/ingresses")["items"] == []

    headers = {"Content-Type": "application/merge-patch+json"}
    change = {"spec": {"hostnames": ["stolen.example.com"]}}
    server.admin.patch(f"{ROUTES}/ep-routed", headers=headers, json=change).raise_for_status()
    seen = (await runtime.observe())["routed"]
    assert seen.message == "Somebody changed the HTTPRoute ep-routed: spec.hostnames[0]."
    assert (await runtime.heal("routed")).reason is None
    server.admin.delete(f"{ROUTES}/ep-routed").raise_for_status()
    assert (await runtime.observe())["routed"].message == "Somebody deleted the HTTPRoute ep-routed."
    assert (await runtime.heal("routed")).reason is None

    await runtime.apply(workload("routed", 2))
    assert server.get(ROUTES)["items"] == []
    await runtime.apply(workload("routed", 3, exposure=WAY_IN))
    assert "HTTPRoute/ep-routed" in (await runtime.orphans(known=()))[0].objects
    await runtime.remove("routed")
    assert server.get(ROUTES)["items"] == []


async def test_a_watch_sees_routes_and_outlives_their_kind(runtime: KubernetesRuntime, server: ApiServer) -> None:
    pace = Pace(first_retry=0.05, longest_retry=0.2, absent=0.2)
    await runtime.apply(workload("watched", exposure=WAY_IN))
    async with runtime.watcher(pace) as watcher:
        watched = KubernetesRuntime(runtime.client, runtime.owner, watcher)

        async def until(holds: Callable[[Observation | None], bool]) -> None:
            async with asyncio.timeout(30):
                while not holds(await watched.seen("watched")):
                    await asyncio.sleep(0.05)

        await asyncio.wait_for(watcher.synced.wait(), 30)
        await until(lambda seen: seen is not None and seen.reason is None)
        server.admin.delete(f"{ROUTES}/ep-watched").raise_for_status()
        await until(lambda seen: seen is not None and seen.message == "Somebody deleted the HTTPRoute ep-watched.")
        kinds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        server.admin.delete(f"{kinds}/httproutes.gateway.networking.k8s.io").raise_for_status()
        await until(lambda seen: seen is not None and seen.reason is None and watcher.fault is None)
        server.apply_all(CRDS.read_text())
        until_served(server)
        await runtime.heal("watched")
        await until(lambda _seen: len(watcher.look("watched").of("HTTPRoute")) == 1)
        assert watcher.fault is None
