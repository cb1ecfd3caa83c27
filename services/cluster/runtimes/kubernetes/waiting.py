"""Waits until workers are ready, by watch, and knows when that will not happen, with the pod's own reason."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from services.cluster.runtimes.base import Observation, Progress
from services.cluster.runtimes.kubernetes import observe
from services.cluster.runtimes.kubernetes.intent import Intent
from services.cluster.runtimes.kubernetes.observe import Judged, Look
from services.cluster.runtimes.kubernetes.reasons import Fault
from services.cluster.runtimes.kubernetes.watcher import Watcher
from shared.jobs.outcomes import Permanent, Retry

_LOOK_AGAIN = 1.0  # seconds; faults that last, events and progress need no change of an object
_FIRST_DETAILS = 1.5  # seconds; a worker that starts well costs no question about it
_DETAILS_EVERY = 2.0
_LOST_GRACE = 20.0  # seconds in which somebody may put back what was deleted

Enrich = Callable[[Look], Awaitable[Look]]
Loading = Callable[[Look], Awaitable[tuple[float, str] | None]]


@dataclass(frozen=True, slots=True)
class Wish:
    endpoint_id: str
    replicas: int
    timeout: float
    server_url: str
    generation: int  # that the cluster has; a watcher that is behind is waited for


async def until_ready(
    watcher: Watcher, wish: Wish, enrich: Enrich, loading: Loading, on_progress: Progress | None
) -> Observation:
    """The observation in which `replicas` workers of the latest kind are ready.

    Raises Permanent: `worker_<reason>`, `worker_not_ready` (after `timeout` seconds), `superseded`, `unknown_endpoint`.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wish.timeout
    since: dict[str, float] = {}
    said, seen = "", False
    next_details = clock() + _FIRST_DETAILS
    details = Look({})
    try:
        async with asyncio.timeout(wish.timeout):
            await watcher.synced.wait()
    except TimeoutError:
        raise watcher.fault or Retry("cluster_unavailable", "The cluster could not be read in time.") from None
    async for _ in watcher.changes(every=_LOOK_AGAIN, only=wish.endpoint_id):
        look = watcher.look(wish.endpoint_id)
        intent = look.intent()
        if clock() >= deadline and (intent is None or not seen):
            raise _late(watcher, [], [], wish)
        if not seen and (intent is None or intent.generation < wish.generation):
            continue
        seen = True
        intent = _wanted(intent, wish)
        judged = [one for one in observe.workers(look, intent, wish.server_url) if one.current]
        ready = sum(one.status.state == "ready" for one in judged)
        message, percent = f"{ready} of {wish.replicas} workers ready", 100.0 * ready / max(1, wish.replicas)
        if ready >= wish.replicas and not _surplus(look, intent, wish):
            _tell(on_progress, 100.0, message, said)
            return observe.observation(look, intent, wish.server_url)
        loaded = None
        if clock() >= next_details or any(fault.final for fault in _faults(look, intent, judged)):
            details, loaded = await enrich(look), await loading(look)
            next_details = clock() + _DETAILS_EVERY
        look = replace(look, events=details.events, logs=details.logs)
        judged = [one for one in observe.workers(look, intent, wish.server_url) if one.current]
        faults = _faults(look, intent, judged)
        for fault in faults:
            since.setdefault(fault.reason, clock())
            if fault.final or (fault.grace is not None and clock() - since[fault.reason] >= fault.grace):
                raise _hopeless(fault)
        for reason in set(since) - {fault.reason for fault in faults}:
            del since[reason]
        if loaded is not None:
            percent, message = max(percent, 0.9 * loaded[0]), loaded[1]
        else:
            message = _with_trouble(message, watcher, faults)
        said = _tell(on_progress, percent, message, said)
        if clock() >= deadline:
            raise _late(watcher, judged, faults, wish)
    raise AssertionError("a watcher's changes have no end")


def _wanted(intent: Intent | None, wish: Wish) -> Intent:
    if intent is None or intent.removed:
        raise Permanent("unknown_endpoint", f"the cluster runs no endpoint {wish.endpoint_id}")
    if not intent.autoscaled and intent.replicas < wish.replicas:
        raise Permanent("superseded", f"{intent.replicas} workers are wanted now, not {wish.replicas}.")
    return intent


def _surplus(look: Look, intent: Intent, wish: Wish) -> bool:
    """A rolling update is over when its old pods are at least on their way out."""
    return any(
        observe.template_of(pod) != intent.template and not pod["metadata"].get("deletionTimestamp")
        for pod in look.pods()
    )


def _faults(look: Look, intent: Intent, judged: Sequence[Judged]) -> list[Fault]:
    """Of the workers that are not ready, and of the endpoint as a whole; the final ones first."""
    found = [
        replace(one.fault, log=one.status.last_log)
        for one in judged
        if one.fault is not None and one.status.state not in ("ready", "stopping")
    ]
    whole = observe.of_endpoint(look, intent)
    if whole is not None and whole.reason != "changed_by_others":
        found.append(whole if whole.final or whole.grace is not None else replace(whole, grace=_LOST_GRACE))
    return sorted(found, key=lambda fault: not fault.final)


def _with_trouble(message: str, watcher: Watcher, faults: Sequence[Fault]) -> str:
    if watcher.fault is not None:
        return f"Waiting for the cluster: {watcher.fault.message}"
    return f"{message}: {faults[0].message}" if faults else message


def _hopeless(fault: Fault) -> Permanent:
    lines = "\n".join(fault.log)
    return Permanent(fault.code, fault.message + (f"\nIts last lines:\n{lines}" if lines else ""))


def _late(watcher: Watcher, judged: Sequence[Judged], faults: Sequence[Fault], wish: Wish) -> Permanent:
    if faults:
        return _hopeless(faults[0])
    if watcher.fault is not None:
        return Permanent("worker_not_ready", f"Not ready after {wish.timeout:g} s: {watcher.fault.message}")
    states = ", ".join(f"{one.status.id} is {one.status.state}" for one in judged) or "there is no pod"
    return Permanent("worker_not_ready", f"Not ready after {wish.timeout:g} s: {states}.")


def _tell(on_progress: Progress | None, percent: float, message: str, said: str) -> str:
    now = f"{percent:.0f} {message}"
    if on_progress is not None and now != said:
        on_progress(percent, message)
    return now
