"""Waits until a claim holds the model: a Job that fetches it, or a pod that `push` sends it to."""

import asyncio

from pydantic import SecretStr

from services.cluster.runtimes.base import Progress
from services.cluster.runtimes.containers import LOADER_TOKEN, Delivery
from services.cluster.runtimes.kubernetes import details, names, pods, reasons
from services.cluster.runtimes.kubernetes.manifests import Builder
from services.cluster.runtimes.kubernetes.objects import Json, Objects
from services.cluster.runtimes.kubernetes.push import Push, Source
from shared.jobs.outcomes import Permanent, Retry

__all__ = ["Source", "until_filled", "why_no_pod"]

_LOOK = 0.5  # seconds
_LOST_AFTER = 20.0  # seconds without any pod of the Job's


async def until_filled(
    objects: Objects, builder: Builder, source: Source | None, timeout: float, on_progress: Progress | None
) -> None:
    """Raises Permanent with the loader's own reason, Retry (`load_failed`) after `timeout` seconds."""
    delivery = builder.workload.delivery
    if delivery is None:
        return
    name = names.load(builder.workload.endpoint_id, delivery.digest)
    try:
        async with asyncio.timeout(timeout):
            if delivery.mode == "push":
                await _push(objects, builder, delivery, name, source, on_progress)
            else:
                await _fetched(objects, name, on_progress)
    except TimeoutError:
        raise Retry("load_failed", f"The model was not in the cluster within {timeout:g} seconds.") from None
    mark = {"metadata": {"annotations": {names.FILLED: delivery.digest}}}
    claim = names.claim(builder.workload.endpoint_id, delivery.digest)
    await objects.merge("PersistentVolumeClaim", claim, mark)
    await clear(objects, name)


async def is_filled(objects: Objects, endpoint_id: str, digest: str) -> bool:
    """Whether the claim holds the model already."""
    found = await objects.get("PersistentVolumeClaim", names.claim(endpoint_id, digest))
    return found is not None and (found["metadata"].get("annotations") or {}).get(names.FILLED) == digest


async def clear(objects: Objects, name: str) -> None:
    """Take away what filled the claim: where one node at a time may have it, its pod is in the way."""
    for kind in ("Job", "Pod"):
        found = await objects.get(kind, name)
        if found is not None:
            await objects.delete({**found, "kind": kind})


async def _push(
    objects: Objects, builder: Builder, delivery: Delivery, name: str, source: Source | None, progress: Progress | None
) -> None:
    if source is None:
        raise Permanent("runtime_unsupported", "There is nothing to push the model's files from.")
    while True:
        pod = await objects.get("Pod", name)
        if pod is None:
            raise Retry("load_failed", "The pod that receives the model is gone.")
        if (pod.get("status") or {}).get("phase") == "Succeeded":
            return
        if reasons.is_ready(pod):
            break
        await _refuse_the_hopeless(objects, pod)
        _say(progress, pod)
        await asyncio.sleep(_LOOK)
    token: SecretStr = builder.workload.secrets[LOADER_TOKEN]
    async with objects.client.pushing:
        await Push(objects.client, name, token, progress).send(delivery.files, source)


async def _fetched(objects: Objects, name: str, progress: Progress | None) -> None:
    clock = asyncio.get_running_loop().time
    seen = clock()
    while True:
        job = await objects.get("Job", name)
        if job is None:
            raise Retry("load_failed", "The Job that fetches the model is gone.")
        conditions = {one.get("type"): one for one in (job.get("status") or {}).get("conditions") or ()}
        if (conditions.get("Complete") or {}).get("status") == "True":
            return
        found = (await objects.list("Pod", f"job-name={name}")).items
        for pod in found:
            seen = clock()
            await _refuse_the_hopeless(objects, pod)
            _say(progress, pod)
        if (conditions.get("Failed") or {}).get("status") == "True":
            raise Permanent("load_failed", f"The model could not be fetched: {conditions['Failed'].get('message')}")
        if not found and clock() - seen > _LOST_AFTER and (fault := await why_no_pod(objects, name)) is not None:
            raise Permanent(fault.code, fault.message)
        running = [pod for pod in found if (pod.get("status") or {}).get("phase") == "Running"]
        if running and progress is not None:
            said = await details.progress(objects, running[0]["metadata"]["name"])
            if said is not None:
                progress(*said)
        await asyncio.sleep(_LOOK)


async def why_no_pod(objects: Objects, job: str) -> reasons.Fault | None:
    """Why the Job has no pod, by its events."""
    found = await objects.list("Event", field_selector=f"involvedObject.name={job},type=Warning")
    latest = sorted(found.items, key=reasons.event_time)
    return reasons.of_refusal(str(latest[-1].get("message"))) if latest else None


async def _refuse_the_hopeless(objects: Objects, pod: Json) -> None:
    events = await objects.list("Event", field_selector=f"involvedObject.name={pod['metadata']['name']}")
    fault = reasons.of_pod(pod, events.items)
    if fault is not None and fault.final:
        raise Permanent(fault.code, fault.message)


def _say(progress: Progress | None, pod: Json) -> None:
    """Why it does not start yet."""
    fault = reasons.of_pod(pod)
    if progress is not None and fault is not None and fault.container != pods.LOADER:
        progress(None, fault.message)
