"""What Stepway needs to be allowed in a cluster, and how a cluster is asked whether it is.

`NEEDED` and `OPTIONAL` are the list of deploy/cluster-access.yaml, which an operator applies first; a test holds them
together. Without what is optional, a cluster works, and has less: an account of an older file is not refused.
"""

import asyncio
from collections.abc import Iterable

from services.cluster.runtimes.kubernetes.client import KubernetesClient
from shared.contracts.clusters import Permission

NAMESPACE = "stepway"
IDENTITY_NAMESPACE = "kube-system"
_AT_ONCE = 8

_READ = ("get", "list", "watch")
_MANAGE = (*_READ, "create", "patch", "delete")  # server-side apply is patch, and create where nothing is yet

_IN_NAMESPACE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("", "configmaps", _MANAGE),
    ("", "secrets", _MANAGE),
    ("", "services", _MANAGE),
    ("", "persistentvolumeclaims", _MANAGE),
    ("apps", "deployments", _MANAGE),
    ("apps", "deployments/scale", ("get", "patch")),
    ("apps", "statefulsets", _MANAGE),
    ("apps", "statefulsets/scale", ("get", "patch")),
    ("batch", "jobs", _MANAGE),
    ("policy", "poddisruptionbudgets", _MANAGE),
    ("autoscaling", "horizontalpodautoscalers", _MANAGE),
    ("networking.k8s.io", "ingresses", _MANAGE),
    ("gateway.networking.k8s.io", "httproutes", _MANAGE),
    ("", "pods", _MANAGE),
    ("", "pods/log", ("get",)),
    ("", "pods/proxy", ("get", "create", "update")),
    ("", "services/proxy", ("get", "create")),
    ("apps", "replicasets", _READ),
    ("", "events", _READ),
    ("", "resourcequotas", _READ),
    ("", "limitranges", _READ),
    ("metrics.k8s.io", "pods", ("get", "list")),
)
_IN_CLUSTER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("", "nodes", _READ),
    ("storage.k8s.io", "storageclasses", ("get", "list")),
    ("networking.k8s.io", "ingressclasses", ("get", "list")),
    ("node.k8s.io", "runtimeclasses", ("get", "list")),
)

NEEDED: tuple[Permission, ...] = (
    *(
        Permission(verb=verb, resource=resource, group=group, namespace=NAMESPACE)
        for group, resource, verbs in _IN_NAMESPACE
        for verb in verbs
    ),
    *(
        Permission(verb=verb, resource=resource, group=group)
        for group, resource, verbs in _IN_CLUSTER
        for verb in verbs
    ),
    # a namespace is an object of the cluster, and at the same time in itself
    *(Permission(verb="get", resource="namespaces", name=name) for name in (IDENTITY_NAMESPACE, NAMESPACE)),
)

OPTIONAL: tuple[Permission, ...] = tuple(
    Permission(verb=verb, resource="gateways", group="gateway.networking.k8s.io", namespace=NAMESPACE)
    for verb in ("get", "list")
)


async def missing(cluster: KubernetesClient, needed: Iterable[Permission] = NEEDED) -> list[Permission]:
    """Those of `needed` that the account does not have, in their order: one SelfSubjectAccessReview each."""
    needed = list(needed)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def ask(permission: Permission) -> bool:
        async with slots:
            return await _allowed(cluster, permission)

    try:
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(ask(permission)) for permission in needed]
    except ExceptionGroup as several:  # the first one ended the others
        raise several.exceptions[0] from None
    return [permission for permission, answer in zip(needed, answers, strict=True) if not answer.result()]


async def _allowed(cluster: KubernetesClient, permission: Permission) -> bool:
    resource, _, subresource = permission.resource.partition("/")
    attributes = {
        "verb": permission.verb,
        "group": permission.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": permission.namespace or (permission.name if resource == "namespaces" else None),
        "name": permission.name,
    }
    review = await cluster.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        body={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        },
    )
    status = review.get("status")
    return isinstance(status, dict) and status.get("allowed") is True
