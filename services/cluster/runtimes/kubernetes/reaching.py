"""Whether pods reach an address of the platform: asked by a small pod of ours, in the cluster, as the loader will ask.

The pod belongs to a Job that the cluster itself clears away soon after its end, should we not live to do it.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from services.cluster.runtimes.kubernetes import names, pods, reasons
from services.cluster.runtimes.kubernetes.bringing import why_no_pod
from services.cluster.runtimes.kubernetes.objects import Json, Objects, printable
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from shared.jobs.outcomes import Retry, StepError

COMPONENT = "reach"
_SECONDS = 120.0  # for the image to be pulled, and the pod to start and to be told
_GONE_SECONDS = 20.0
_LOOK = 0.3
_PROGRAM = """
import json, os, ssl, sys, urllib.error, urllib.request
def end(code, words):
    open("/dev/termination-log", "w").write(words[:300])
    sys.exit(code)
try:
    context = ssl.create_default_context()
    if os.environ.get("CA"):
        context.load_verify_locations(cadata=os.environ["CA"])
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    ask = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(os.environ["URL"], data=b"", method="POST")
    try:
        answer = ask.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    try:
        said = json.loads(answer.read(65536))
    except ValueError:
        said = None
    if answer.status in (401, 403, 404) and isinstance(said, dict) and isinstance(said.get("code"), str):
        end(0, "answers")
    end(3, "status %d, which is not what Stepway answers" % answer.status)
except OSError as error:
    reason = getattr(error, "reason", error)
    end(3, "%s: %s" % (type(reason).__name__, reason))
"""


@dataclass(frozen=True, slots=True)
class Question:
    """`url` answers requests without a token as Stepway refuses them; `image` has Python."""

    endpoint_id: str
    url: str
    image: str
    user: int
    ca_pem: str | None = None
    job: str | None = None


async def ask(objects: Objects, owner: str, question: Question) -> str | None:
    """Why pods do not reach the address, as a part of a sentence; None if they do. Leaves nothing in the cluster."""
    manifest = _job(owner, question)
    name = manifest["metadata"]["name"]
    await _clear(objects, name)  # of an attempt that was cut off
    trouble: list[str] = []
    try:
        async with asyncio.timeout(_SECONDS):
            made = await objects.apply(manifest)
            return await _answer(objects, made, trouble)
    except TimeoutError:
        return trouble[-1] if trouble else f"a pod that asks for it had no answer within {_SECONDS:g} seconds"
    finally:
        # Also when we are cancelled; what cannot be deleted now the cluster clears away by itself
        with contextlib.suppress(StepError):
            await asyncio.shield(_delete(objects, name))


async def _answer(objects: Objects, job: Json, trouble: list[str]) -> str | None:
    """`trouble` gets what may pass yet. A pod of an earlier Job of that name may still be there, and counts for nothing."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    while True:
        listed = (await objects.list("Pod", f"job-name={name}")).items
        found = [
            pod for pod in listed if any(one["uid"] == uid for one in pod["metadata"].get("ownerReferences") or ())
        ]
        for pod in found:
            ended = (reasons.server_status(pod, pods.SCRIPT).get("state") or {}).get("terminated")
            if ended:
                return _said(ended)
            events = await objects.list("Event", field_selector=f"involvedObject.name={pod['metadata']['name']}")
            fault = reasons.of_pod(pod, events.items)
            if fault is not None:
                trouble.append(f"the pod that asks for it does not start: {fault.message.rstrip('.')}")
                if fault.final:
                    return trouble[-1]
        if not found and (refusal := await why_no_pod(objects, name)) is not None:
            return f"the pod that asks for it is not created: {refusal.message.rstrip('.')}"
        await asyncio.sleep(_LOOK)


def _said(ended: Json) -> str | None:
    code = ended.get("exitCode")
    if code == 0:
        return None
    return printable(ended.get("message"), 300) or f"the pod that asks for it ended with code {code}"


async def _clear(objects: Objects, name: str) -> None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + _GONE_SECONDS
    while await _delete(objects, name):
        if clock() > deadline:
            raise Retry("not_gone_yet", f"The Job {name} of an earlier attempt is still in the cluster.")
        await asyncio.sleep(_LOOK)


async def _delete(objects: Objects, name: str) -> bool:
    """Whether it was still there."""
    found = await objects.get("Job", name)
    if found is not None and not found["metadata"].get("deletionTimestamp"):
        await objects.delete({**found, "kind": "Job"})
    return found is not None


def _job(owner: str, question: Question) -> Json:
    labels = names.labels(owner, question.endpoint_id, COMPONENT)
    metadata: dict[str, Any] = {
        "name": f"{names.base(question.endpoint_id)}-{COMPONENT}", "namespace": NAMESPACE, "labels": labels,
        "annotations": {names.JOB: question.job} if question.job else {},
    }  # fmt: skip
    template = {"metadata": {"labels": labels}, "spec": pods.script(
        question.image, question.user, _PROGRAM, {"URL": question.url, "CA": question.ca_pem or ""}
    )}  # fmt: skip
    spec = {"backoffLimit": 0, "activeDeadlineSeconds": 180, "ttlSecondsAfterFinished": 60, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
