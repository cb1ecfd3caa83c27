"""Every object of one endpoint, as the JSON that is applied: same input, same objects.

`pods` makes the pods inside. The Secret is made apart (`secret`), as it is the only one that may not be remembered;
`intent` keeps the others. What belongs together is removed together: all are owned by the intent's ConfigMap.
"""

import base64
import hashlib
import hmac
import json
import math
from functools import cached_property
from typing import Any

from services.cluster.runtimes.base import Workload
from services.cluster.runtimes.containers import API_KEY, LOADER_TOKEN, Container, Delivery, Exposure
from services.cluster.runtimes.kubernetes import names, pods, shape
from services.cluster.runtimes.kubernetes.objects import Refused
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from shared.contracts.deployments import Autoscale
from shared.jobs.outcomes import Permanent

Json = dict[str, Any]

_MAX_OBJECT = 900 * 1024  # bytes; the cluster's store takes 1.5 MiB, a ConfigMap 1 MiB
_BUFFERING = {  # ignored by controllers that do not know them
    "nginx.ingress.kubernetes.io/proxy-buffering": "off",
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
    "nginx.ingress.kubernetes.io/proxy-body-size": "64m",
}


class Builder:
    """The objects of one workload for one owner. Raises Permanent where the workload is not one of pods."""

    def __init__(self, workload: Workload, owner: str) -> None:
        if workload.container is None:
            raise Permanent("runtime_unsupported", "A Kubernetes cluster runs containers, and this is a process.")
        self.workload = workload
        self.container: Container = workload.container
        self.owner = owner
        self.name = names.base(workload.endpoint_id)
        _check_secrets(workload)

    def all(self) -> list[Json]:
        """What is there as long as the endpoint is, but for its Secret."""
        made = [*self.model_objects(), *self._services(), self._budget()]
        if self.container.files:
            made.append(self._config_map(f"{self.name}-files", "files", self.container.files))
        if self.workload.exposure is not None:
            made.append(self._way_in(self.workload.exposure))
        if self.workload.autoscale is not None:
            made.append(self._autoscaler(self.workload.autoscale))
        return [*made, *self.sets()]

    def model_objects(self) -> list[Json]:
        """What the model's files need: the claim and the loader's script."""
        delivery = self.workload.delivery
        if delivery is None:
            return []
        script = {"loader.py": pods.LOADER_SCRIPT.read_text()}
        if delivery.ca_pem is not None:
            script["ca.crt"] = delivery.ca_pem
        if delivery.mode == "push":
            script["manifest.json"] = json.dumps([file.model_dump() for file in delivery.files], separators=(",", ":"))
        made = [self._config_map(names.loader_files(self.workload.endpoint_id, delivery.digest), "loader", script)]
        if delivery.claim is not None:
            made.append(self._claim(delivery))
        return made

    def secret(self) -> Json:
        values = {name: value.get_secret_value() for name, value in self.workload.secrets.items()}
        if self.workload.api_key is not None:
            values[API_KEY] = self.workload.api_key.get_secret_value()
        data = {name: base64.b64encode(value.encode()).decode() for name, value in sorted(values.items())}
        return self._object("v1", "Secret", self.name, "worker") | {"type": "Opaque", "data": data}

    def sets(self) -> list[Json]:
        """What makes the pods of workers, see `shape`: a Deployment, or a StatefulSet for each pod of a group."""
        if self.container.pods == 1:
            return [self._deployment()]
        if self.workload.autoscale is not None:
            raise Permanent("runtime_unsupported", "A worker of several pods cannot be scaled by the cluster itself.")
        return [self._stateful_set(rank) for rank in range(self.container.pods)]

    def _deployment(self) -> Json:
        start = int(self.container.probes.start_seconds)
        replicas = {} if self.workload.autoscale else {"replicas": self.workload.replicas}
        spec = {
            **replicas,
            "progressDeadlineSeconds": max(600, start + 300),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        }
        return self._set("Deployment", self.name, spec, {})

    def _stateful_set(self, rank: int) -> Json:
        probes = self.container.probes
        spec = {
            # Before a set goes on to the next group, all others have seen their pods of this one ready too
            "minReadySeconds": math.ceil(2 * probes.interval + probes.timeout),
            "replicas": self.workload.replicas,
            "serviceName": shape.hosts(self.name),
            "podManagementPolicy": "Parallel",  # the pods of a group wait for each other
            "updateStrategy": {"type": "RollingUpdate"},
        }
        return self._set("StatefulSet", shape.set_name(self.name, rank), spec, {names.RANK: str(rank)}, rank)

    def _set(self, kind: str, name: str, spec: Json, more: dict[str, str], rank: int = 0) -> Json:
        labels = self._labels("worker") | more
        template: Json = {"metadata": {"labels": labels}, "spec": pods.worker(self.workload, self.container, rank)}
        template["metadata"]["annotations"] = {names.TEMPLATE: self._digest}
        selector = {"matchLabels": {name: labels[name] for name in (*_SELECTED, *more)}}
        return self._object("apps/v1", kind, name, "worker") | {
            "spec": {**spec, "revisionHistoryLimit": 2, "selector": selector, "template": template}
        }

    def loader(self) -> Json:
        """What fills the claim: a Job that fetches, or a pod that is sent the files."""
        delivery = self.workload.delivery
        if delivery is None or delivery.claim is None:
            raise Permanent("runtime_unsupported", "The model of this endpoint is not brought by a loader.")
        name = names.load(self.workload.endpoint_id, delivery.digest)
        spec = pods.loader(self.workload, self.container, delivery)
        if delivery.mode == "push":
            return self._object("v1", "Pod", name, "loader") | {"spec": spec}
        template = {"metadata": {"labels": self._labels("loader")}, "spec": spec}
        job = {"backoffLimit": 3, "completions": 1, "parallelism": 1, "template": template}
        return self._object("batch/v1", "Job", name, "loader") | {"spec": job}

    def _services(self) -> list[Json]:
        """The way to the workers: of a group, to its leader; the pods of groups also get host names, ready or not."""
        selector = {name: self._labels("worker")[name] for name in _SELECTED}
        port = {"name": pods.PORT, "port": 80, "targetPort": pods.PORT, "protocol": "TCP"}
        spec = {"type": "ClusterIP", "selector": selector, "ports": [port]}
        service = self._object("v1", "Service", self.name, "worker")
        if self.container.pods == 1:
            return [service | {"spec": spec}]
        found = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector}
        return [
            service | {"spec": spec | {"selector": selector | {names.RANK: "0"}}},
            self._object("v1", "Service", shape.hosts(self.name), "worker") | {"spec": found},
        ]

    def _budget(self) -> Json:
        """Nodes are drained one pod at a time; without one of its pods the others of a group do not serve, and may go."""
        selector = {"matchLabels": {name: self._labels("worker")[name] for name in _SELECTED}}
        spec: Json = {"maxUnavailable": 1, "selector": selector}
        if self.container.pods > 1:
            spec["unhealthyPodEvictionPolicy"] = "AlwaysAllow"
        return self._object("policy/v1", "PodDisruptionBudget", self.name, "worker") | {"spec": spec}

    def _autoscaler(self, wanted: Autoscale) -> Json:
        target = {"type": "Utilization", "averageUtilization": wanted.cpu_percent}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
            "minReplicas": wanted.minimum,
            "maxReplicas": wanted.maximum,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        return self._object("autoscaling/v2", "HorizontalPodAutoscaler", self.name, "worker") | {"spec": spec}

    def _way_in(self, exposure: Exposure) -> Json:
        if exposure.gateway is not None:
            route = {
                "parentRefs": [{"name": exposure.gateway}],
                "hostnames": [exposure.host],
                "rules": [{"backendRefs": [{"name": self.name, "port": 80}]}],
            }
            return self._object("gateway.networking.k8s.io/v1", "HTTPRoute", self.name, "worker") | {"spec": route}
        backend = {"service": {"name": self.name, "port": {"name": pods.PORT}}}
        path = {"path": "/", "pathType": "Prefix", "backend": backend}
        spec: Json = {"rules": [{"host": exposure.host, "http": {"paths": [path]}}]}
        if exposure.ingress_class is not None:
            spec["ingressClassName"] = exposure.ingress_class
        made = self._object("networking.k8s.io/v1", "Ingress", self.name, "worker") | {"spec": spec}
        made["metadata"]["annotations"] |= _BUFFERING
        return made

    def _claim(self, delivery: Delivery) -> Json:
        wanted = delivery.claim
        assert wanted is not None
        name = names.claim(self.workload.endpoint_id, delivery.digest)
        spec: Json = {
            "accessModes": ["ReadWriteMany" if wanted.shared else "ReadWriteOnce"],
            "resources": {"requests": {"storage": str(wanted.size_bytes)}},
            **({"storageClassName": wanted.storage_class} if wanted.storage_class else {}),
        }
        return self._object("v1", "PersistentVolumeClaim", name, "model") | {"spec": spec}

    def _config_map(self, name: str, component: str, data: dict[str, str]) -> Json:
        if sum(len(text.encode()) for text in data.values()) > _MAX_OBJECT:
            raise Refused("cluster_request_refused", f"The files for {name} are too large for a ConfigMap.", 413)
        return self._object("v1", "ConfigMap", name, component) | {"data": data}

    def _object(self, version: str, kind: str, name: str, component: str) -> Json:
        annotations = {names.JOB: self.workload.job} if self.workload.job else {}
        metadata = {"name": name, "namespace": NAMESPACE, "labels": self._labels(component), "annotations": annotations}
        return {"apiVersion": version, "kind": kind, "metadata": metadata}

    def _labels(self, component: str) -> dict[str, str]:
        return names.labels(self.owner, self.workload.endpoint_id, component)

    @cached_property
    def _digest(self) -> str:
        """Of all that a worker is made from: another digest means other pods. The secrets are in it under a key."""
        template = {"metadata": {"labels": self._labels("worker")}, "spec": pods.worker(self.workload, self.container)}
        values = {name: value.get_secret_value() for name, value in self.workload.secrets.items()}
        values.pop(LOADER_TOKEN, None)  # a worker that has its model needs no new pod for a new token
        key = self.workload.api_key.get_secret_value() if self.workload.api_key else self.workload.endpoint_id
        sealed = hmac.new(key.encode(), json.dumps(values, sort_keys=True).encode(), "sha256").hexdigest()
        parts = json.dumps([template, self.container.files, sealed], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def with_owner(manifest: Json, uid: str, intent_name: str) -> Json:
    """The same object, removed by the cluster itself when the intent's ConfigMap is gone."""
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": intent_name, "uid": uid}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference]}}


_SELECTED = (names.OWNER, names.ENDPOINT, names.COMPONENT)


def _check_secrets(workload: Workload) -> None:
    container = workload.container
    given = {*workload.secrets, *([API_KEY] if workload.api_key else [])}
    needed = {*container.secret_environment.values(), *container.secret_files} if container else set()
    if workload.delivery is not None:
        needed.add(LOADER_TOKEN)
    if needed - given:
        raise Permanent("secret_missing", f"The workload needs the secrets {', '.join(sorted(needed - given))}.")
