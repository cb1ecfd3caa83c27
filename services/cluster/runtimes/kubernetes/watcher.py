"""Follows all objects of ours in one cluster, and tells what has become of each endpoint as soon as it changes.

One list and one watch per kind, resumed from its resource version; when the cluster's history is too short, listed
anew; when the API server is away, tried again with backoff, while what was last known stays and `fault` says why.
A slow question beside them finds a server that holds connections but answers nothing. `runtime` makes watchers.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

import structlog

from services.cluster.runtimes.kubernetes import names, stream
from services.cluster.runtimes.kubernetes.objects import Conflict, Objects
from services.cluster.runtimes.kubernetes.observe import Look
from shared.jobs.outcomes import Retry, StepError

Json = dict[str, Any]
Place = tuple[str, str]  # kind and uid

KINDS = (
    "ConfigMap", "Secret", "Service", "PersistentVolumeClaim", "Ingress", "HTTPRoute", "Deployment", "StatefulSet",
    "Pod",
)  # fmt: skip
_SETTLE = 0.05  # seconds; changes that come together are told together
_ASKING = "ask"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. `watch` is how long the server keeps a watch, `silence` how long one may say nothing."""

    watch: int = 240
    silence: float = 300.0
    first_retry: float = 0.2
    longest_retry: float = 5.0
    ask: float = 5.0
    absent: float = 60.0  # until a kind that the cluster does not know is asked for again


@dataclass(eq=False, slots=True)
class _Listener:
    only: str | None
    pending: set[str] = field(default_factory=set)
    event: asyncio.Event = field(default_factory=asyncio.Event)


class Watcher:
    """`async with Watcher(…)` follows until the end of the block; whoever still waits for `changes` then gets a Retry.

    Its state belongs to the event loop's thread.
    """

    def __init__(self, objects: Objects, owner: str, endpoint_id: str = "", pace: Pace | None = None) -> None:
        self._objects = objects
        self._selector = names.selector(owner, endpoint_id)
        self._pace = pace or Pace()
        self._seen: dict[Place, Json] = {}
        self._places: dict[str, set[Place]] = {}  # of each endpoint's objects
        self._listed: set[str] = set()
        self._absent: set[str] = set()  # kinds that the cluster does not know
        self._faults: dict[str, StepError] = {}
        self._pauses: dict[str, float] = {}  # before the next try, by kind
        self._listeners: set[_Listener] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.synced = asyncio.Event()  # once: every kind has been listed
        self.requests = 0  # lists and watches so far
        self._ended = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(kind), name=f"watch-{kind}") for kind in KINDS]
        self._tasks.append(asyncio.create_task(self._ask(), name="ask-cluster"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        self._tell()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def fault(self) -> StepError | None:
        """Why the cluster cannot be followed at present; what was last seen is kept meanwhile."""
        return next(iter(self._faults.values()), None)

    def look(self, endpoint_id: str) -> Look:
        """What is known of one endpoint. Events and logs are not watched."""
        items = [self._seen[place] for place in self._places.get(endpoint_id, ())]
        return Look({kind: [one for one in items if one["kind"] == kind] for kind in self._listed - self._absent})

    def looks(self) -> dict[str, Look]:
        return {endpoint_id: self.look(endpoint_id) for endpoint_id in self._places}

    async def changes(self, every: float | None = None, only: str | None = None) -> AsyncIterator[set[str]]:
        """The ids of endpoints that changed since the last turn: first all that there are, then as it happens.

        An empty set tells that `every` seconds have passed, or that `fault` has come or gone. `only`: of one endpoint.
        Raises Retry (`cluster_unavailable`) once the watcher has ended: another one knows more.
        """
        listener = _Listener(only)
        self._listeners.add(listener)
        try:
            listener.pending |= set(self._places) if only is None else {only}
            while True:
                if self._ended:
                    raise Retry("cluster_unavailable", f"{self._objects.client.server} is not followed any more.")
                told = set(listener.pending)
                listener.pending.clear()
                listener.event.clear()
                yield told
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await listener.event.wait()
                        await asyncio.sleep(_SETTLE)
        finally:
            self._listeners.discard(listener)

    # --- inside

    async def _follow(self, kind: str) -> None:
        version = ""
        while True:
            try:
                version = version or await self._list(kind)
                if not version:
                    self._well(kind)
                    await asyncio.sleep(self._pace.absent)
                    continue
                version = await self._watch(kind, version)
            except stream.Gone:
                version = ""
            except _Interrupted as interrupted:
                version = interrupted.version
                self._ill(kind, interrupted.fault)
            except Exception as error:  # a fault of ours, or an object that nobody foresaw: list anew, a little later
                log.exception("watch_failed", kind=kind)
                version = ""
                self._ill(kind, error)
            pause = self._pauses.get(kind, self._pace.first_retry)
            if kind in self._faults:
                self._pauses[kind] = min(pause * 2, self._pace.longest_retry)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret: only spread)

    async def _list(self, kind: str) -> str:
        """All of a kind anew; what is no longer there has gone while nobody looked. Empty: there is no such kind."""
        self.requests += 1
        try:
            found = await self._objects.list(kind, self._selector)
        except (StepError, Conflict) as fault:
            raise _Interrupted("", fault) from fault
        now = {one["metadata"]["uid"]: _slim(kind, {**one, "kind": kind}) for one in found.items}
        before = {place[1]: one for place, one in self._seen.items() if place[0] == kind}
        changed = [one for uid, one in now.items() if _version(before.get(uid)) != _version(one)]
        gone = [one for uid, one in before.items() if uid not in now]
        for one in changed:
            self._keep(kind, one)
        for one in gone:
            self._drop(kind, one)
        self._listed.add(kind)
        (self._absent.discard if found.resource_version else self._absent.add)(kind)
        if len(self._listed) == len(KINDS):
            self.synced.set()
        self._tell(*changed, *gone)
        return found.resource_version

    async def _watch(self, kind: str, version: str) -> str:
        """Follow from `version`; returns the version to go on from when the server ends the watch as agreed."""
        self.requests += 1
        path = self._objects.path(kind)
        seconds = int(self._pace.watch * random.uniform(0.8, 1.2))  # noqa: S311 (as above)
        events = stream.events(
            self._objects.client,
            path,
            self._selector,
            version,
            seconds=seconds,
            silence=self._pace.silence,
            opened=lambda: self._well(kind),
        )
        try:
            async for event, item in events:
                metadata = item.get("metadata") or {}
                version = metadata.get("resourceVersion") or version
                if event != "BOOKMARK" and metadata.get("uid"):
                    self._take(kind, event, {**item, "kind": kind})
        except Retry as fault:
            raise _Interrupted(version, fault) from fault
        except StepError as fault:  # the kind may be gone: a list tells
            raise _Interrupted("", fault) from fault
        return version

    def _take(self, kind: str, event: str, item: Json) -> None:
        if event == "DELETED":
            self._drop(kind, item)
        else:
            self._keep(kind, _slim(kind, item))
        self._tell(item)

    def _keep(self, kind: str, item: Json) -> None:
        place = (kind, item["metadata"]["uid"])
        self._drop(kind, item)  # its labels may have changed
        self._seen[place] = item
        if (endpoint_id := endpoint_of(item)) is not None:
            self._places.setdefault(endpoint_id, set()).add(place)

    def _drop(self, kind: str, item: Json) -> None:
        place = (kind, item["metadata"]["uid"])
        before = self._seen.pop(place, None)
        endpoint_id = endpoint_of(before) if before is not None else None
        if endpoint_id is not None:
            self._places[endpoint_id].discard(place)
            if not self._places[endpoint_id]:
                del self._places[endpoint_id]

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(self._pace.ask)
            try:
                async with asyncio.timeout(self._pace.ask):
                    await self._objects.client.version()
                self._well(_ASKING)
            except TimeoutError:
                self._ill(_ASKING, Retry("cluster_answer_timeout", f"{self._objects.client.server} does not answer."))
            except StepError as fault:
                self._ill(_ASKING, fault)

    def _well(self, source: str) -> None:
        self._pauses.pop(source, None)
        if self._faults.pop(source, None) is not None and not self._faults:
            log.info("cluster_followed_again", server=self._objects.client.server)
            self._tell()

    def _ill(self, source: str, fault: Exception) -> None:
        known = fault if isinstance(fault, StepError) else Retry("cluster_unavailable", "The cluster cannot be read.")
        if not self._faults:
            log.warning("cluster_not_followed", server=self._objects.client.server, code=known.code)
        first = not self._faults
        self._faults[source] = known
        if first:
            self._tell()

    def _tell(self, *items: Json) -> None:
        changed = {endpoint_id for one in items if (endpoint_id := endpoint_of(one)) is not None}
        if items and not changed:
            return
        for listener in self._listeners:
            mine = changed if listener.only is None else changed & {listener.only}
            if mine or not items:
                listener.pending |= mine
                listener.event.set()


class _Interrupted(Exception):
    def __init__(self, version: str, fault: Exception) -> None:
        super().__init__(str(fault))
        self.version = version
        self.fault = fault


def endpoint_of(item: Json) -> str | None:
    found = (item["metadata"].get("labels") or {}).get(names.ENDPOINT)
    return str(found) if found else None


def _version(item: Json | None) -> object:
    return item["metadata"].get("resourceVersion") if item else None


def _slim(kind: str, item: Json) -> Json:
    """Without what is never looked at: who set which field, and what Secrets hold."""
    metadata = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
    kept = {**item, "metadata": metadata}
    if kind == "Secret":
        kept.pop("data", None)
    return kept
