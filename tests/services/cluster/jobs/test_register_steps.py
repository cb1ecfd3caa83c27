"""Registering at a real API server, with exactly the account that the operator's manifest makes."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes.aio.client import ApiException, CoreV1Api, V1ConfigMap, V1ObjectMeta
from kubernetes.aio.watch import Watch

from services.cluster.jobs.register_steps import Connection, PermissionsMissing, check_access, connect, inspect_cluster
from services.cluster.runtimes.kubernetes.permissions import NEEDED
from shared.contracts.clusters import Permission
from shared.jobs.outcomes import Permanent
from shared.security.kubeconfig import KubeconfigPolicy, parse
from tests.testbed.certificates import Authority, as_yaml, encoded, kubeconfig
from tests.testbed.kube import ACCESS, LOOPBACK, ApiServer, collection
from tests.testbed.tls_server import VERSION, http, serving

READY = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
GPU_LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "node.kubernetes.io/instance-type": "p5.48xlarge",
}
GPU_STATUS = {
    "capacity": {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "8", "pods": "110"},
    "allocatable": {"cpu": "191500m", "memory": "2000Gi", "nvidia.com/gpu": "8", "pods": "110"},
    "conditions": READY,
}
CPU_STATUS = {"capacity": {"cpu": "4", "memory": "8Gi"}, "allocatable": {"cpu": "4", "memory": "7Gi"}}


def connection(server: ApiServer, **user: Any) -> Connection:
    return Connection(server.kubeconfig(**user or {"token": server.token()}), addresses=LOOPBACK)


@pytest.fixture(scope="module")
def furnished(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server with nodes and classes."""
    api_server.add_node("gpu-1", status=GPU_STATUS, labels=GPU_LABELS)
    api_server.add_node("cpu-1", status={**CPU_STATUS, "conditions": READY})
    api_server.add_node("gone-1", status={**CPU_STATUS, "conditions": [{"type": "Ready", "status": "Unknown"}]})
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    classes: list[dict[str, Any]] = [
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "slow"}, "provisioner": "x.io/a"},
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast", "annotations": default},
         "provisioner": "x.io/b", "allowVolumeExpansion": True, "volumeBindingMode": "WaitForFirstConsumer"},
        {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "nginx"},
         "spec": {"controller": "k8s.io/ingress-nginx"}},
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"},
    ]  # fmt: skip
    for one in classes:
        api_server.apply(collection(one), one)
    yield api_server
    for path in [f"/api/v1/nodes/{name}" for name in ("gpu-1", "cpu-1", "gone-1")]:
        api_server.admin.delete(path).raise_for_status()
    for one in classes:
        api_server.admin.delete(f"{collection(one)}/{one['metadata']['name']}").raise_for_status()


async def test_registers_with_the_manifests_account(furnished: ApiServer) -> None:
    heard: list[tuple[float | None, str | None]] = []
    link = connection(furnished)

    def hear(percent: float | None, message: str | None) -> None:
        heard.append((percent, message))

    version = await connect(link, hear)
    assert (version.major, version.minor) >= (1, 27)
    access = await check_access(link, hear)
    namespace = furnished.admin.get("/api/v1/namespaces/kube-system").json()
    assert access.uid == namespace["metadata"]["uid"]
    found = await inspect_cluster(link, hear)
    assert found.uid == access.uid
    assert {one.name: one.ready for one in found.nodes} == {"cpu-1": True, "gone-1": False, "gpu-1": True}
    gpu = next(one for one in found.nodes if one.name == "gpu-1")
    assert (gpu.instance_type, gpu.cpu_millis_allocatable, gpu.memory) == ("p5.48xlarge", 191_500, 2 << 40)
    assert [(one.count, one.product, one.memory) for one in gpu.gpus] == [(8, "NVIDIA-H100-80GB-HBM3", 81559 << 20)]
    assert found.default_storage_class == "fast"
    assert {one.name: one.expandable for one in found.storage_classes} == {"fast": True, "slow": False}
    assert [one.controller for one in found.ingress_classes] == ["k8s.io/ingress-nginx"]
    assert [one.handler for one in found.runtime_classes] == ["nvidia"]
    assert found.totals().nodes_usable == 2
    assert heard[-1] == (100, "2 of 3 nodes are usable, with 8 GPUs")


def role(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in yaml.safe_load_all(ACCESS.read_text()) if one["kind"] == kind)
    return found


async def missing(link: Connection, expected: list[Permission]) -> PermissionsMissing:
    """What is missing, once the authorizer has seen the change: it learns of it by a watch."""
    deadline = time.monotonic() + 10
    while True:
        with pytest.raises(PermissionsMissing) as caught:
            await check_access(link)
        if caught.value.missing == expected or time.monotonic() > deadline:
            return caught.value
        await asyncio.sleep(0.05)


async def until_complete(link: Connection) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            await check_access(link)
        except PermissionsMissing:
            await asyncio.sleep(0.05)
        else:
            return
    await check_access(link)


@pytest.mark.parametrize(
    ("kind", "group", "resource", "verb", "namespace"),
    [
        ("Role", "apps", "deployments/scale", "patch", "stepway"),
        ("Role", "metrics.k8s.io", "pods", "list", "stepway"),
        ("Role", "batch", "jobs", "delete", "stepway"),
        ("ClusterRole", "", "nodes", "watch", None),
    ],
)
async def test_names_the_permission_that_is_missing(
    api_server: ApiServer, kind: str, group: str, resource: str, verb: str, namespace: str | None
) -> None:
    less = role(kind)
    (rule,) = (one for one in less["rules"] if one["apiGroups"] == [group] and resource in one["resources"])
    rule["verbs"].remove(verb)
    expected = [
        one
        for one in NEEDED
        if (one.group, one.verb, one.namespace) == (group, verb, namespace) and one.resource in rule["resources"]
    ]
    link = connection(api_server)
    await until_complete(link)
    try:
        api_server.apply(collection(less), less)
        error = await missing(link, expected)
    finally:
        api_server.apply_access()
    assert error.missing == expected
    assert error.code == "cluster_permissions_missing"
    assert str(expected[0]) in error.message
    await until_complete(link)


async def test_an_account_with_no_rights_gets_a_bounded_sentence(api_server: ApiServer) -> None:
    nobody = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "stepway"}}
    api_server.apply(collection(nobody), nobody)
    with pytest.raises(PermissionsMissing) as caught:
        await check_access(connection(api_server, token=api_server.token("nobody")))
    assert len(caught.value.missing) > 100
    assert caught.value.message.endswith(f"and {len(caught.value.missing) - 10} more.")
    with pytest.raises(Permanent) as refused:
        await inspect_cluster(connection(api_server, token=api_server.token("nobody")))
    assert refused.value.code == "cluster_forbidden"


async def test_a_revoked_token(api_server: ApiServer) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "leaver", "namespace": "stepway"}}
    api_server.apply(collection(account), account)
    tokens = [api_server.token("leaver") for _ in range(40)]
    await connect(connection(api_server, token=tokens.pop()))
    api_server.admin.delete(f"{collection(account)}/leaver").raise_for_status()
    codes = []
    for token in tokens:  # a token once used is remembered for ten seconds, so each is used once
        try:
            await connect(connection(api_server, token=token))
        except Permanent as error:
            codes.append(error.code)
            break
        await asyncio.sleep(0.1)
    assert codes == ["cluster_unauthorized"]


@pytest.mark.parametrize("token", ["made-up", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"])
async def test_a_made_up_token(api_server: ApiServer, token: str) -> None:
    with pytest.raises(Permanent) as caught:
        await connect(connection(api_server, token=token))
    assert caught.value.code == "cluster_unauthorized"
    assert token not in str(caught.value)


async def test_a_client_certificate(api_server: ApiServer) -> None:
    def user(authority: Authority) -> dict[str, str]:
        pair = authority.issue("root", organization="system:masters")
        return {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)}

    link = connection(api_server, **user(api_server.authority))
    assert link.kubeconfig.summary.auth == "client_certificate"
    assert (await check_access(link)).uid
    with pytest.raises(Permanent) as caught:
        await connect(connection(api_server, **user(Authority.make("kube-ca"))))
    assert caught.value.code == "cluster_unauthorized"


async def test_a_wrong_authority(api_server: ApiServer) -> None:
    cluster = {
        "server": api_server.url,
        "certificate-authority-data": encoded(Authority.make("kube-ca").pair.certificate),
    }
    found = parse(as_yaml(kubeconfig(cluster=cluster)), KubeconfigPolicy(addresses=LOOPBACK))
    with pytest.raises(Permanent) as caught:
        await connect(Connection(found, addresses=LOOPBACK))
    assert caught.value.code == "cluster_certificate_untrusted"


@pytest.mark.parametrize(("version", "old"), [("v1.26.15", True), ("v1.9.0+k3s1", True), ("v1.27.0-rc.1", False)])
async def test_a_version_that_is_too_old(version: str, old: bool) -> None:
    async with serving(lambda request: http({**VERSION, "gitVersion": version})) as server:
        found = parse(as_yaml(kubeconfig(cluster={"server": server.url})), KubeconfigPolicy(addresses=LOOPBACK))
        link = Connection(found, addresses=LOOPBACK)
        assert (await connect(link)).version == version
        with pytest.raises(Permanent) as caught:
            await check_access(link)
    assert caught.value.code == ("cluster_too_old" if old else "cluster_permissions_missing")


async def test_the_official_interfaces_work_over_the_connection(api_server: ApiServer) -> None:
    async with connection(api_server).open() as cluster:
        core = CoreV1Api(cluster.api)
        body = V1ConfigMap(metadata=V1ObjectMeta(name="seen"), data={"a": "b"})
        await core.create_namespaced_config_map("stepway", body)
        watch = Watch()  # type: ignore[no-untyped-call]  # of the official client
        events = watch.stream(core.list_namespaced_config_map, "stepway", timeout_seconds=5)  # type: ignore[no-untyped-call]
        async for event in events:
            if event["object"].metadata.name == "seen":
                break
        assert (await core.read_namespaced_config_map("seen", "stepway")).data == {"a": "b"}
        await core.delete_namespaced_config_map("seen", "stepway")
        with pytest.raises(ApiException) as caught:
            await core.list_namespaced_config_map("default")
        assert caught.value.status == 403
