"""The pod of a worker, and the pods that bring its model: nothing runs as root, writes to its image, or gets a token.

`manifests` puts these templates into Deployments, StatefulSets and Jobs.
"""

import math
from pathlib import Path
from typing import Any

from services.cluster.runtimes.base import Workload
from services.cluster.runtimes.containers import (
    FILES,
    LOADER_TOKEN,
    MODEL,
    PULL_SECONDS,
    SECRETS,
    SLOWEST_FETCH,
    Container,
    Delivery,
    GpuRequest,
    Resources,
)
from services.cluster.runtimes.kubernetes import gpus, names, shape

Json = dict[str, Any]

SERVER = "server"
LOADER = "loader"
SCRIPT = "script"
PORT = "http"
RECEIVER_PORT = 8080
LOADER_FILES = "/etc/stepway/loader"
LOADER_SCRIPT = Path(__file__).with_name("loader.py")
_CREDENTIAL = "/etc/stepway/token"
_STARTUP_PERIOD = 1.0
_LOADER_MEMORY = 256 * 1024**2
_SPARE = 64 * 1024**2  # beside the model, in its folder
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_GPU_TAINTS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi",
               "google.com/tpu", "aws.amazon.com/neuron")  # fmt: skip


def worker(workload: Workload, container: Container, rank: int = 0) -> Json:
    """The pod's spec; `rank` is that in its group, if it is one of several."""
    delivery = workload.delivery
    spec = _pod(container.user) | {
        "terminationGracePeriodSeconds": math.ceil(container.stop_grace + container.drain_seconds),
        "containers": [_server(workload, container, rank)],
        "volumes": _volumes(workload, container),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {names.ENDPOINT: workload.endpoint_id, names.COMPONENT: "worker"}},
            }
        ],
    }
    if delivery is not None and delivery.mode == "fetch":
        spec["initContainers"] = [_loader(container, delivery, [*_fetch_arguments(delivery)], disk=delivery.size)]
    if container.resources.gpus is not None:
        spec |= _gpu_placement(container.resources.gpus)
    if container.runtime_class is not None:
        spec["runtimeClassName"] = container.runtime_class
    return spec


def loader(workload: Workload, container: Container, delivery: Delivery) -> Json:
    """The spec of a pod that fills a claim: by itself, or with what it is sent (`push`)."""
    receives = delivery.mode == "push"
    arguments = ["receive"] if receives else _fetch_arguments(delivery)
    made = _loader(container, delivery, arguments, disk=0)
    if receives:
        made["ports"] = [{"name": PORT, "containerPort": RECEIVER_PORT, "protocol": "TCP"}]
        made["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    return _pod(container.user) | {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "containers": [made],
        "volumes": _model_volumes(workload, read_only=False),
    }


def script(image: str, user: int, program: str, environment: dict[str, str]) -> Json:
    """The spec of a pod that runs a few lines of Python, once."""
    requests = {"cpu": "50m", "memory": str(_LOADER_MEMORY // 4)}
    made: Json = {
        "name": SCRIPT,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-I", "-B", "-c", program],
        "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
        "resources": {"requests": requests, "limits": {"memory": str(_LOADER_MEMORY)}},
        "securityContext": _hardened(),
        "terminationMessagePolicy": "File",
    }
    return _pod(user) | {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [made]}


def _pod(user: int) -> Json:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _hardened() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _server(workload: Workload, container: Container, rank: int) -> Json:
    environment = {"HOME": "/tmp", **container.environment}  # noqa: S108 (the pod's own, an empty volume)
    secret = names.base(workload.endpoint_id)
    made: Json = {
        "name": SERVER,
        "image": container.image,
        "imagePullPolicy": "IfNotPresent",
        "args": container.args,
        "env": [
            *({"name": name, "value": value} for name, value in sorted(environment.items())),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
                for name, key in sorted(container.secret_environment.items())
            ),
            *(_place_in_group(secret, container.pods, rank) if container.pods > 1 else ()),
        ],
        "ports": [{"name": PORT, "containerPort": container.port, "protocol": "TCP"}],
        "resources": _resources(container.resources),
        "securityContext": _hardened(),
        "volumeMounts": _mounts(workload, container),
        "terminationMessagePolicy": "File",
        **_probes(container, _start_seconds(workload, container)),
    }
    if container.command:
        made["command"] = container.command
    if container.drain_seconds:  # new requests still come until everybody has heard that the pod is going
        made["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", f"{container.drain_seconds:g}"]}}}
    return made


def _place_in_group(base: str, count: int, rank: int) -> list[Json]:
    """Its number in its set is that of its group. Where a variable is put into another, it must come before it."""
    fields = {
        "STEPWAY_POD_IP": "status.podIP",
        "STEPWAY_TEMPLATE": f"metadata.annotations['{names.TEMPLATE}']",
        "STEPWAY_GROUP": "metadata.labels['apps.kubernetes.io/pod-index']",
    }
    values = {
        "STEPWAY_RANK": str(rank),
        "STEPWAY_PODS": str(count),
        "STEPWAY_LEADER": f"{base}-$(STEPWAY_GROUP).{shape.hosts(base)}",
    }
    found = [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]
    return [*found, *({"name": name, "value": value} for name, value in values.items())]


def _start_seconds(workload: Workload, container: Container) -> float:
    """The pods of a group wait for each other: also for the one whose image and model come last."""
    own = container.probes.start_seconds
    if container.pods == 1:
        return own
    fetched = workload.delivery.size if workload.delivery and workload.delivery.mode == "fetch" else 0
    return own + PULL_SECONDS + fetched / SLOWEST_FETCH


def _probes(container: Container, start_seconds: float) -> Json:
    probes = container.probes
    ready = {"httpGet": {"path": probes.ready_path, "port": PORT, "scheme": "HTTP"}}
    live = {"httpGet": {"path": probes.live_path or probes.ready_path, "port": PORT, "scheme": "HTTP"}}
    timing = {"periodSeconds": math.ceil(probes.interval), "timeoutSeconds": math.ceil(probes.timeout)}
    return {
        "startupProbe": ready
        | {
            "periodSeconds": int(_STARTUP_PERIOD),
            "timeoutSeconds": math.ceil(probes.timeout),
            "failureThreshold": math.ceil(start_seconds / _STARTUP_PERIOD),
        },
        "readinessProbe": ready | timing | {"failureThreshold": probes.failures},
        "livenessProbe": live | timing | {"failureThreshold": 4 * probes.failures},
    }


def _resources(wanted: Resources) -> Json:
    requests: dict[str, str] = {"cpu": cpu(wanted.cpu_millis), "memory": str(wanted.memory_bytes)}
    limits: dict[str, str] = {"memory": str(wanted.memory_bytes)}
    if wanted.cpu_limit_millis is not None:
        limits["cpu"] = cpu(wanted.cpu_limit_millis)
    if wanted.gpus is not None:
        requests[wanted.gpus.resource] = limits[wanted.gpus.resource] = str(wanted.gpus.count)
    return {"requests": requests, "limits": limits}


def cpu(millis: int) -> str:
    """As the API server writes it."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def _gpu_placement(wanted: GpuRequest) -> Json:
    placement: Json = {
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            for key in dict.fromkeys((wanted.resource, *_GPU_TAINTS))
            if key.partition("/")[0] == wanted.resource.partition("/")[0]
        ]
    }
    if wanted.products:  # one term per label that may name the product; a node must satisfy one of them
        keys = gpus.product_labels(wanted.resource)
        terms = [
            {"matchExpressions": [{"key": key, "operator": "In", "values": sorted(wanted.products)}]} for key in keys
        ]
        placement["affinity"] = {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": terms}}}
    return placement


def gpu_products(spec: Json) -> list[str]:
    """The kinds of GPU that a worker's pod may have; none: any."""
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED) or {}
    terms = affinity.get("nodeSelectorTerms") or [{"matchExpressions": [{"values": []}]}]
    return list(terms[0]["matchExpressions"][0]["values"])


def _fetch_arguments(delivery: Delivery) -> list[str]:
    return ["fetch", f"--url={delivery.url}"]


def _loader(container: Container, delivery: Delivery, arguments: list[str], *, disk: int) -> Json:
    """`disk`: bytes that it will write to the node's own disk."""
    requests = {"cpu": "100m", "memory": str(_LOADER_MEMORY)}
    if disk:
        requests["ephemeral-storage"] = str(disk + _SPARE)
    script = f"{LOADER_FILES}/loader.py"
    return {
        "name": LOADER,
        "image": container.image_of_loader,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-I", "-B", script, *arguments, f"--target={MODEL}", f"--digest={delivery.digest}"],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"requests": requests, "limits": {"memory": str(2 * _LOADER_MEMORY)}},
        "securityContext": _hardened(),
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL},
            {"name": "loader", "mountPath": LOADER_FILES, "readOnly": True},
            {"name": "token", "mountPath": _CREDENTIAL, "readOnly": True},
        ],
    }


def _mounts(workload: Workload, container: Container) -> list[Json]:
    mounts: list[Json] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 (as above)
    if workload.delivery is not None:
        mounts.append({"name": "model", "mountPath": MODEL, "readOnly": True})
    if container.files:
        mounts.append({"name": "files", "mountPath": FILES, "readOnly": True})
    if container.secret_files:
        mounts.append({"name": "secrets", "mountPath": SECRETS, "readOnly": True})
    if container.shared_memory_bytes:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 (as above)
    mounts += [
        {"name": "tmp", "mountPath": path, "subPath": path.strip("/").replace("/", "-")} for path in container.scratch
    ]
    return mounts


def _volumes(workload: Workload, container: Container) -> list[Json]:
    volumes: list[Json] = [{"name": "tmp", "emptyDir": {"sizeLimit": str(container.scratch_bytes)}}]
    if container.shared_memory_bytes:
        shared = {"medium": "Memory", "sizeLimit": str(container.shared_memory_bytes)}
        volumes.append({"name": "shm", "emptyDir": shared})
    if container.files:
        volumes.append({"name": "files", "configMap": {"name": f"{names.base(workload.endpoint_id)}-files"}})
    if container.secret_files:
        items = [{"key": name, "path": name} for name in container.secret_files]
        secret = {"secretName": names.base(workload.endpoint_id), "items": items}
        volumes.append({"name": "secrets", "secret": secret})
    return volumes + _model_volumes(workload, read_only=True)


def _model_volumes(workload: Workload, *, read_only: bool) -> list[Json]:
    delivery = workload.delivery
    if delivery is None:
        return []
    base = names.base(workload.endpoint_id)
    tools: list[Json] = [
        {"name": "loader", "configMap": {"name": names.loader_files(workload.endpoint_id, delivery.digest)}},
        {"name": "token", "secret": {"secretName": base, "items": [{"key": LOADER_TOKEN, "path": "token"}]}},
    ]
    if delivery.mode == "fetch":
        return [{"name": "model", "emptyDir": {"sizeLimit": str(delivery.size + 2 * _SPARE)}}, *tools]
    claim = {"claimName": names.claim(workload.endpoint_id, delivery.digest), "readOnly": read_only}
    volume = {"name": "model", "persistentVolumeClaim": claim if read_only else {"claimName": claim["claimName"]}}
    return [volume] if read_only else [volume, *tools]
