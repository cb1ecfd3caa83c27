"""A Kubernetes cluster as a runtime: each endpoint is what makes its workers (`shape`), with all that
belongs to it, in one namespace.

It keeps no state of its own: what should be is in the cluster (`intent`), what is is read from it (`observe`), at once
or by a `watcher`. Any number of these objects, in any number of processes, may look after one cluster.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import httpx

from services.cluster.runtimes.base import (
    ClusterFacts,
    Gpu,
    LogLine,
    Node,
    Observation,
    Progress,
    UnknownEndpoint,
    Workload,
)
from services.cluster.runtimes.kubernetes import (
    bringing,
    details,
    inspect,
    intent,
    logs,
    names,
    observe,
    preview,
    reaching,
    removal,
    shape,
    waiting,
)
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.intent import Intent, Stored
from services.cluster.runtimes.kubernetes.manifests import Builder, with_owner
from services.cluster.runtimes.kubernetes.objects import Json, Objects
from services.cluster.runtimes.kubernetes.observe import Look
from services.cluster.runtimes.kubernetes.proxy import ApiServerTransport
from services.cluster.runtimes.kubernetes.watcher import KINDS, Pace, Watcher, endpoint_of
from shared.contracts.clusters import ClusterInspection, Orphan
from shared.contracts.previews import Preview
from shared.jobs.outcomes import Permanent, Retry
from shared.telemetry.traces import traced

_TRIES = 20


class KubernetesRuntime:
    """Implements `runtimes.base.Runtime`. `owner` is the id under which this installation knows the cluster.

    The client is the caller's to close. With a `watcher` (of the same cluster and owner, running) nothing is listed
    that it knows.
    """

    def __init__(self, client: KubernetesClient, owner: str, watcher: Watcher | None = None) -> None:
        self.client = client
        self._objects = Objects(client)
        self.owner = owner
        self._watcher = watcher

    # --- intent

    @traced("kubernetes apply")
    async def apply(self, workload: Workload) -> Observation:
        """As the protocol says. Raises also `Refused` with the cluster's words, `owned_by_another`, `secret_missing`."""
        builder = Builder(workload, self.owner)
        wanted = _intent(builder)
        stored = await intent.write(self._objects, wanted)
        await self._converge(stored, builder.secret())
        return await self._observe(wanted)

    @traced("kubernetes scale")
    async def scale(self, endpoint_id: str, replicas: int, generation: int) -> Observation:
        for _ in range(_TRIES):
            before = await self._existing(endpoint_id)
            intent.check_generation(before.intent, generation)
            if before.intent.autoscaled:
                raise Permanent("autoscaled", "The cluster itself sets this endpoint's number of workers.")
            after = before.intent.model_copy(update={"replicas": replicas, "generation": generation})
            stored = await intent.change(self._objects, before, after)
            if stored is not None:
                await self._converge(stored, None)
                return await self._observe(after)
        raise Retry("cluster_conflict", f"The endpoint {endpoint_id} is being changed by several at once.")

    async def heal(self, endpoint_id: str, secret_of: Workload | None = None) -> Observation:
        """Put back what others deleted or changed. The Secret only with the workload that it was made from."""
        stored = await self._existing(endpoint_id)
        secret = Builder(secret_of, self.owner).secret() if secret_of is not None else None
        await self._converge(stored, secret)
        return await self._observe(stored.intent)

    @traced("kubernetes remove")
    async def remove(self, endpoint_id: str, generation: int | None = None, *, timeout: float = 180.0) -> None:
        """As the protocol says. Raises Retry (`not_gone_yet`) when something is still there after `timeout` seconds."""
        await removal.remove(self._objects, self.owner, endpoint_id, generation, timeout)

    async def remove_all(self) -> None:
        """Everything in the cluster that is this installation's."""
        for orphan in await self.orphans(known=()):
            await self.remove(orphan.endpoint_id)

    async def orphans(self, known: Iterable[str]) -> list[Orphan]:
        """What is this installation's and of no endpoint that it knows. `remove` takes each away."""
        return await removal.orphans(self._objects, self.owner, set(known))

    async def preview(self, workload: Workload) -> Preview:
        """What `apply` would make, tried by the cluster itself, and whether there is room for it. Changes nothing."""
        return await preview.preview(self._objects, Builder(workload, self.owner))

    async def check_more(self, endpoint_id: str, replicas: int) -> None:
        """Whether there is room for what the endpoint lacks to so many workers. Raises Permanent (`insufficient_capacity`)."""
        now = (await self._existing(endpoint_id)).intent
        problems = await preview.room_for_more(self._objects, now, max(0, replicas - now.replicas))
        if problems:
            raise Permanent(preview.CAPACITY, " ".join(problems))

    # --- the model's files

    @traced("kubernetes ask from a pod")
    async def unreached(self, question: reaching.Question) -> str | None:
        """Why pods do not reach an address of the platform, in words; None if they do."""
        return await reaching.ask(self._objects, self.owner, question)

    @traced("kubernetes bring files")
    async def bring(
        self, workload: Workload, source: bringing.Source | None, timeout: float, on_progress: Progress | None = None
    ) -> None:
        """Fill the claim that the workload's delivery names, before `apply`; nothing to do where pods fetch by themselves.

        `source` reads the files where they are to be pushed. Idempotent: what is there already is kept.
        """
        builder = Builder(workload, self.owner)
        if workload.delivery is None or workload.delivery.claim is None:
            return
        stored = await intent.read(self._objects, self.owner, workload.endpoint_id)
        if stored is None or not stored.intent.serving:
            only = {"replicas": 0, "serving": False}
            stored = await intent.write(self._objects, _intent(builder).model_copy(update=only))
        await self._put(stored, [builder.secret()])
        await self._put(stored, builder.model_objects())
        if await bringing.is_filled(self._objects, workload.endpoint_id, workload.delivery.digest):
            return
        await self._put(stored, [builder.loader()])
        await bringing.until_filled(self._objects, builder, source, timeout, on_progress)

    async def forget_model(self, endpoint_id: str, digest: str) -> None:
        """Delete the claim that holds this digest, unless the endpoint is to serve it; no `apply` does, as workers that
        are being replaced still read it, and may have to stay.
        """
        claim = names.claim(endpoint_id, digest)
        stored = await intent.read(self._objects, self.owner, endpoint_id)
        wanted = stored.intent.references() if stored is not None else []
        if not any((one.kind, one.name) == ("PersistentVolumeClaim", claim) for one in wanted):
            await bringing.clear(self._objects, names.load(endpoint_id, digest))
            await removal.delete_ours(self._objects, self.owner, endpoint_id, "PersistentVolumeClaim", claim)

    # --- observation

    async def inspect(self) -> ClusterFacts:
        found = await inspect.nodes(self.client)
        return ClusterFacts(
            nodes=[
                Node(
                    name=one.name, cpus=one.cpu_millis_allocatable / 1000, memory_bytes=one.memory,
                    memory_available_bytes=one.memory_allocatable, disk_available_bytes=one.storage_allocatable,
                    gpus=[
                        Gpu(name=gpu.product or gpu.resource, memory_bytes=gpu.memory)
                        for gpu in one.gpus for _ in range(gpu.count)
                    ],
                    os=one.os or "unknown", arch=one.architecture or "unknown", runtime_version=one.runtime or "unknown",
                )
                for one in found if one.ready and one.schedulable
            ]
        )  # fmt: skip

    async def inspection(self) -> ClusterInspection:
        """For a plan: the nodes may be those of a moment ago."""
        return await inspect.inspect(self.client, await self.client.version(), recent=True)

    async def observe(self) -> dict[str, Observation]:
        watcher = self._watcher
        looks = watcher.looks() if watcher is not None and watcher.synced.is_set() else await self._looks("")
        seen = {}
        for endpoint_id, look in looks.items():
            wanted = look.intent()
            if wanted is not None:
                seen[endpoint_id] = observe.observation(await self._enrich(look), wanted, self.client.url)
        return seen

    async def observe_one(self, endpoint_id: str) -> Observation | None:
        look = (await self._looks(endpoint_id)).get(endpoint_id)
        wanted = look.intent() if look is not None else None
        if look is None or wanted is None:
            return None
        return observe.observation(await self._enrich(look), wanted, self.client.url)

    async def changes(self, every: float = 5.0) -> AsyncIterator[dict[str, Observation | None]]:
        """Endpoints as they change, from the watcher: first all. None: it is gone. Empty: see the watcher's `fault`."""
        if self._watcher is None:
            raise AssertionError("changes are told by a watcher")
        await self._watcher.synced.wait()
        async for changed in self._watcher.changes(every):
            yield {endpoint_id: await self.seen(endpoint_id) for endpoint_id in changed}

    async def seen(self, endpoint_id: str) -> Observation | None:
        """One endpoint as the watcher knows it. None: nothing is there."""
        if self._watcher is None:
            raise AssertionError("only a watcher has seen it")
        look = self._watcher.look(endpoint_id)
        wanted = look.intent()
        return observe.observation(await self._enrich(look), wanted, self.client.url) if wanted else None

    @traced("kubernetes wait until ready")
    async def wait_ready(
        self, endpoint_id: str, replicas: int, timeout: float, on_progress: Progress | None = None
    ) -> Observation:
        stored = await self._existing(endpoint_id)
        wish = waiting.Wish(endpoint_id, replicas, timeout, self.client.url, stored.intent.generation)
        async with self._watching(endpoint_id) as watcher:
            return await waiting.until_ready(watcher, wish, self._enrich, self._loading, on_progress)

    async def logs(self, endpoint_id: str, worker: int | None = None, tail: int = 200) -> list[LogLine]:
        await self._existing(endpoint_id)
        return await logs.latest(self._objects, await self._pods(endpoint_id, worker), tail)

    async def follow(self, endpoint_id: str, worker: int | None = None, tail: int = 20) -> AsyncIterator[LogLine]:
        await self._existing(endpoint_id)

        async def present() -> list[Json] | None:
            stored = await intent.read(self._objects, self.owner, endpoint_id)
            return None if stored is None or stored.intent.removed else await self._pods(endpoint_id, worker)

        async for line in logs.follow(self._objects, present, tail):
            yield line

    def transport(self) -> httpx.AsyncBaseTransport:
        """For requests to workers whose `via` is `api_server`; it holds nothing of its own that would be closed."""
        return ApiServerTransport(self.client)

    def watcher(self, pace: Pace | None = None) -> Watcher:
        """One for the whole cluster; give it to another runtime object once it runs."""
        return Watcher(self._objects, self.owner, pace=pace)

    # --- inside

    async def _converge(self, stored: Stored, secret: Json | None) -> None:
        """Make the cluster as the intent says; again if the intent has changed meanwhile, so that the latest one stays."""
        for _ in range(_TRIES):
            wanted = stored.intent
            first = [one for one in wanted.wanted() if not shape.is_set(one)]
            await self._put(stored, [*first, *([secret] if secret else [])])
            await self._put(stored, [one for one in wanted.wanted() if shape.is_set(one)])
            if wanted.retired:
                await removal.retire(self._objects, self.owner, wanted)
            now = await intent.read(self._objects, self.owner, wanted.endpoint_id)
            if now is None or now.intent.removed:
                raise UnknownEndpoint(wanted.endpoint_id)
            if now.resource_version == stored.resource_version:
                return
            stored = now
        raise Retry(
            "cluster_conflict", f"The endpoint {stored.intent.endpoint_id} is being changed by several at once."
        )

    async def _put(self, stored: Stored, manifests: list[Json]) -> None:
        owned = [with_owner(one, stored.uid, stored.intent.name) for one in manifests]
        results = await asyncio.gather(*map(self._objects.apply, owned), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _existing(self, endpoint_id: str) -> Stored:
        stored = await intent.read(self._objects, self.owner, endpoint_id)
        if stored is None or stored.intent.removed:
            raise UnknownEndpoint(endpoint_id)
        return stored

    async def _observe(self, applied: Intent) -> Observation:
        """What has just been made: only what it is made of is asked for."""
        kinds = {"ConfigMap", "Secret", "Pod", *(one.kind for one in applied.references())} & set(KINDS)
        look = (await self._looks(applied.endpoint_id, sorted(kinds))).get(applied.endpoint_id)
        wanted = look.intent() if look is not None else None
        if look is None or wanted is None:
            raise UnknownEndpoint(applied.endpoint_id)
        return observe.observation(look, wanted, self.client.url)

    async def _looks(self, endpoint_id: str, kinds: Sequence[str] = KINDS) -> dict[str, Look]:
        selector = names.selector(self.owner, endpoint_id)
        listed = await asyncio.gather(*(self._objects.list(kind, selector) for kind in kinds))
        grouped: dict[str, dict[str, list[Json]]] = {}
        for kind, found in zip(kinds, listed, strict=True):
            for one in found.items:
                if (key := endpoint_of(one)) is not None:
                    grouped.setdefault(key, {kind: [] for kind in kinds})[kind].append({**one, "kind": kind})
        return {key: Look(objects) for key, objects in grouped.items()}

    @asynccontextmanager
    async def _watching(self, endpoint_id: str) -> AsyncIterator[Watcher]:
        if self._watcher is not None:
            yield self._watcher
            return
        async with Watcher(self._objects, self.owner, endpoint_id) as watcher:
            yield watcher

    async def _enrich(self, look: Look) -> Look:
        return await details.enrich(self._objects, look)

    async def _loading(self, look: Look) -> tuple[float, str] | None:
        return await details.loading(self._objects, look)

    async def _pods(self, endpoint_id: str, worker: int | None) -> list[Json]:
        found = await self._objects.list("Pod", names.selector(self.owner, endpoint_id, "worker"))
        workers = shape.workers(found.items, names.base(endpoint_id))
        return [pod for ordinal, one in enumerate(workers) if worker is None or ordinal == worker for pod in one.pods]


def _intent(builder: Builder) -> Intent:
    workload, container = builder.workload, builder.container
    return Intent(
        endpoint_id=workload.endpoint_id, owner=builder.owner, generation=workload.generation,
        template_generation=workload.generation, replicas=workload.replicas, job=workload.job, port=container.port,
        memory_bytes=container.pods * container.resources.memory_bytes,
        gpus=container.pods * container.resources.gpus.count if container.resources.gpus else 0, pods=container.pods,
        autoscaled=workload.autoscale is not None, exposure=workload.exposure, manifests=builder.all(),
    )  # fmt: skip
