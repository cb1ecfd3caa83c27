"""What is asked only about pods in trouble: their events, their last lines, how far their loader is."""

import asyncio
import json
from dataclasses import replace

from services.cluster.runtimes.kubernetes import logs, pods, reasons
from services.cluster.runtimes.kubernetes.objects import Json, Objects, printable
from services.cluster.runtimes.kubernetes.observe import Look
from shared.jobs.outcomes import StepError

_AT_MOST = 8  # pods that are asked about at a time
_LINE = 300  # characters


async def enrich(objects: Objects, look: Look) -> Look:
    """The look with events of the pods that are not ready, the last lines of those that ended, and events of what makes
    no pods.
    """
    troubled = [pod for pod in look.pods() if not reasons.is_ready(pod)][:_AT_MOST]
    troubled += [one for one in look.of("StatefulSet") if reasons.lacks_pods(one)]
    if not troubled:
        return look
    found = await asyncio.gather(*(_details(objects, one) for one in troubled))
    names = [one["metadata"]["name"] for one in troubled]
    events = {name: one[0] for name, one in zip(names, found, strict=True)}
    lines = {name: one[1] for name, one in zip(names, found, strict=True) if one[1]}
    return replace(look, events=events, logs=lines)


async def loading(objects: Objects, look: Look) -> tuple[float, str] | None:
    """Percent and a sentence of the loader that is furthest behind, while there is one."""
    reports = []
    for pod in look.pods()[:_AT_MOST]:
        status = pod.get("status") or {}
        for one in status.get("initContainerStatuses") or ():
            if one.get("name") == pods.LOADER and (one.get("state") or {}).get("running"):
                reports.append(await progress(objects, pod["metadata"]["name"]))
    known = [one for one in reports if one is not None]
    return min(known) if known else None


async def progress(objects: Objects, pod: str) -> tuple[float, str] | None:
    """What the loader in this pod said last."""
    try:
        lines = await logs.of_pod(objects, pod, pods.LOADER, 1)
    except StepError:
        return None
    return parse(lines[-1].text) if lines else None


def parse(line: str) -> tuple[float, str] | None:
    """One line of the loader's progress: `{"done": bytes, "total": bytes, "file": path}`."""
    try:
        said = json.loads(line)
        done, total, file = int(said["done"]), int(said["total"]), printable(said.get("file"), 100)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    percent = min(100.0, max(0.0, 100.0 * done / max(1, total)))
    return percent, f"Fetching the model: {done >> 20} of {total >> 20} MiB" + (f" ({file})" if file else "")


async def _details(objects: Objects, pod: Json) -> tuple[list[Json], list[str]]:
    """Of a pod, or of a set that makes them: that has no status of a pod, and so no fault of one."""
    name = pod["metadata"]["name"]
    try:
        found = await objects.list("Event", field_selector=f"involvedObject.name={name}")
        fault = reasons.of_pod(pod, found.items)
        if fault is None or not fault.wants_log:
            return found.items, []
        lines = await _last_lines(objects, name, fault)
    except StepError:  # the cluster is away, or the pod is gone: the pod's own status has to do
        return [], []
    return found.items, lines


async def _last_lines(objects: Objects, name: str, fault: reasons.Fault) -> list[str]:
    container = fault.container or pods.SERVER
    lines = await logs.of_pod(objects, name, container, reasons.LAST_LINES, previous=fault.previous_log)
    return [printable(line.text, _LINE) for line in lines]
