"""A registered Kubernetes cluster as a site: engines run in pods, and the model's files are brought to them.

A plan is made from a fresh look at the cluster. What it settles (images, resources, how the files come) stays the same
in every later step of the job; secrets are put in only when a workload is made of it.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
from pydantic import SecretStr, ValidationError

from services.cluster.engines.base import CloudModel, ContainerPlan, DeployConfig, ModelSource, Unsupported
from services.cluster.engines.images import Images
from services.cluster.engines.litellm import secret_name
from services.cluster.engines.registry import cloud_engine, container_engine_for
from services.cluster.runtimes.base import Progress, Workload
from services.cluster.runtimes.containers import LOADER_TOKEN, MODEL, Delivery, Exposure
from services.cluster.runtimes.kubernetes import inspect
from services.cluster.runtimes.kubernetes.reaching import Question
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.sites import adapters, delivery
from services.cluster.sites.base import DeliveryPlan, Planned, PodPlan, count_of, silent
from services.cluster.sites.manifest import manifest_of
from shared import clock
from shared.contracts.clusters import ClusterInspection
from shared.contracts.deployments import DeploySpec
from shared.contracts.models import Manifest, ModelFile
from shared.contracts.previews import Preview
from shared.jobs.outcomes import Permanent, Retry
from shared.objects.store import ObjectNotFound, ObjectStore, blob_key
from shared.security.loader_token import token_of
from shared.settings import Settings

BRING_SECONDS = 5.5 * 3600
REMEMBERED = 600.0  # seconds
_CHUNK = 4 * 1024 * 1024
Reached = dict[tuple[str, str], float]
_NUMBERED_PODS = (1, 28)  # pods of a StatefulSet know their number by a label
_OF_ROOM = ("engine_unsupported", "insufficient_capacity")
_BACK_WITHIN = timedelta(minutes=5)
_UNTOLD = "not-told"  # in the place of secrets where a workload is only tried


class KubernetesSite:
    """`ingress_url` is where requests from outside enter the cluster; None: workers are reached through its API server.

    `reached` remembers for a few minutes that pods of a cluster reached an address, whatever is deployed next.
    """

    def __init__(
        self,
        runtime: KubernetesRuntime,
        settings: Settings,
        objects: ObjectStore,
        ingress_url: str | None = None,
        reached: Reached | None = None,
    ) -> None:
        self.runtime = runtime
        self._settings = settings
        self._objects = objects
        self._ingress_url = ingress_url
        self._reached = {} if reached is None else reached

    async def plan(
        self, spec: DeploySpec, *, parameters: Sequence[str] = (), dry: bool = False, on_progress: Progress = silent
    ) -> PodPlan:
        async with contextlib.nullcontext() if dry else self._waiting_for_nodes():
            return await self._plan(spec, parameters, dry, on_progress)

    async def _plan(self, spec: DeploySpec, parameters: Sequence[str], dry: bool, on_progress: Progress) -> PodPlan:
        inspection = await self.runtime.inspection()
        exposure = self._exposure(spec, inspection)
        if spec.digest is None:
            made = self._cloud_plan(spec, parameters)
            return PodPlan(**dict(made), exposure=exposure)
        manifest = await manifest_of(self._objects, spec)
        made = await self._model_plan(spec, manifest, inspection)
        if made.container.pods > 1:
            _check_spanning(spec, inspection)
            on_progress(None, f"No node has the GPUs of a worker: each is {made.container.pods} pods on as many nodes.")
        unreached = None if dry else await self._unreached(spec, made, on_progress)
        spans = made.container.pods > 1
        chosen = self._delivery(spec, manifest, inspection, unreached, on_progress, spans=spans)
        if dry and chosen.url is not None and not self._is_reached():
            on_progress(None, "A pod asks first whether that address is reached; if it is not, the model is sent.")
        return PodPlan(**dict(made), delivery=chosen, exposure=exposure)

    async def workload(
        self,
        spec: DeploySpec,
        plan: Planned,
        *,
        key: str | None,
        replicas: int | None = None,
        job: UUID | None = None,
        secrets: Mapping[str, SecretStr] | None = None,
    ) -> Workload:
        if not isinstance(plan, PodPlan):
            raise Permanent("runtime_unsupported", "A Kubernetes cluster runs containers, and this is a process.")
        return Workload(
            endpoint_id=str(spec.endpoint_id), generation=spec.generation, container=plan.container,
            replicas=count_of(plan, replicas), memory_bytes=plan.memory_bytes,
            threads=plan.threads, api_key=SecretStr(key or _UNTOLD), secrets=_secrets(spec, plan, key, secrets or {}),
            delivery=await self._files(spec, plan.delivery), exposure=plan.exposure, autoscale=spec.autoscale,
            job=str(job) if job else None,
        )  # fmt: skip

    async def preview(self, workload: Workload) -> Preview:
        return await self.runtime.preview(workload)

    async def check(self, workload: Workload) -> None:
        found = await self.preview(workload)
        async with self._waiting_for_nodes():
            if found.problems:
                raise Permanent(found.code or "insufficient_capacity", " ".join(found.problems))

    async def check_more(self, endpoint_id: UUID, before: int, after: int, memory_bytes: int) -> None:
        async with self._waiting_for_nodes():
            await self.runtime.check_more(str(endpoint_id), after)

    async def bring(self, spec: DeploySpec, workload: Workload, on_progress: Progress) -> None:
        if workload.delivery is None or workload.delivery.claim is None:
            on_progress(100.0, "There is nothing to bring before the workers start.")
            return
        await self.runtime.bring(workload, self._read, BRING_SECONDS, on_progress)

    async def forget(self, endpoint_id: UUID, digest: str | None = None) -> None:
        """One digest's claim. Of all else, the runtime's `remove` takes all there is."""
        if digest is not None:
            await self.runtime.forget_model(str(endpoint_id), digest)

    def transport(self) -> httpx.AsyncBaseTransport:
        return self.runtime.transport()

    # --- inside

    @contextlib.asynccontextmanager
    async def _waiting_for_nodes(self) -> AsyncIterator[None]:
        """There is no room as long as a node is away that may be back in a moment: tried again then."""
        try:
            yield
        except Permanent as refused:
            if refused.code not in _OF_ROOM:
                raise
            recently = clock.now() - _BACK_WITHIN
            nodes = await inspect.recent_nodes(self.runtime.client)
            away = [node.name for node in nodes if node.away_since is not None and node.away_since > recently]
            if not away:
                raise
            which = f"The node {away[0]} is" if len(away) == 1 else f"{len(away)} nodes are"
            raise Retry("cluster_nodes_away", f"{which} not ready at the moment. {refused.message}") from refused

    async def _model_plan(self, spec: DeploySpec, manifest: Manifest, inspection: ClusterInspection) -> ContainerPlan:
        engine = container_engine_for(manifest.files, spec.metadata, inspection.nodes, images_of(self._settings))
        ranks = await adapters.ranks(self._objects, manifest, (spec.tuning.lora or {}).values())
        source = ModelSource(
            name=spec.name, directory=Path(MODEL), files=manifest.files, metadata=spec.metadata, lora_ranks=ranks
        )
        return engine.container_plan(source, DeployConfig.of(spec.config), inspection.nodes, spec.tuning)

    def _cloud_plan(self, spec: DeploySpec, parameters: Sequence[str]) -> ContainerPlan:
        try:
            model = CloudModel(
                name=spec.name, uri=spec.uri or "", metadata=spec.metadata, parameters=sorted(parameters)
            )
        except ValidationError:
            raise Unsupported("The model's URI is not one of a provider's: provider/model.") from None
        return cloud_engine(images_of(self._settings)).container_plan(model, DeployConfig.of(spec.config), spec.tuning)

    def _exposure(self, spec: DeploySpec, inspection: ClusterInspection) -> Exposure | None:
        """By an Ingress where the cluster has a class for it: the default one is for the cluster to choose, without one it
        is the first there is. Without any, by a Gateway in our namespace.
        """
        if self._ingress_url is None:
            return None
        host, known = f"{spec.endpoint_id}.stepway.internal", inspection.ingress_classes
        chosen = None if not known or any(one.default for one in known) else min(one.name for one in known)
        suitable = [] if known else [one.name for one in inspection.gateways if one.takes(host)]
        return Exposure(
            url=self._ingress_url, host=host, ingress_class=chosen, gateway=min(suitable, default=None)
        )  # fmt: skip

    def _delivery(
        self,
        spec: DeploySpec,
        manifest: Manifest,
        inspection: ClusterInspection,
        unreached: str | None,
        on_progress: Progress,
        *,
        spans: bool,
    ) -> DeliveryPlan:
        base = self._settings.advertised_url
        url = f"{base}/endpoints/{spec.endpoint_id}/model-files" if base is not None else None
        chosen = delivery.choose(manifest, inspection, url, unreached, spans=spans)
        on_progress(None, delivery.in_words(chosen, base, unreached))
        return chosen

    def _is_reached(self) -> bool:
        """Whether pods reached the platform a few minutes ago."""
        known = (self.runtime.owner, self._settings.advertised_url or "")
        return asyncio.get_running_loop().time() - self._reached.get(known, -math.inf) < REMEMBERED

    async def _unreached(self, spec: DeploySpec, made: ContainerPlan, on_progress: Progress) -> str | None:
        """Why pods do not reach the platform; None if they do, or did a few minutes ago, or are given no address."""
        base = self._settings.advertised_url
        if base is None or self._is_reached():
            return None
        on_progress(None, f"Asking from a pod whether {base} is reached")
        why = await self.runtime.unreached(Question(
            endpoint_id=str(spec.endpoint_id), url=f"{base}/endpoints/{spec.endpoint_id}/model-files",
            image=made.container.image_of_loader, user=made.container.user, ca_pem=self._authorities(),
        ))  # fmt: skip
        if why is None:
            self._reached[self.runtime.owner, base] = asyncio.get_running_loop().time()
        return why

    async def _files(self, spec: DeploySpec, plan: DeliveryPlan | None) -> Delivery | None:
        if plan is None:
            return None
        manifest = await manifest_of(self._objects, spec)
        return Delivery(
            mode=plan.mode, digest=plan.digest, files=manifest.files, url=plan.url, claim=plan.claim,
            ca_pem=self._authorities() if plan.url is not None else None,
        )  # fmt: skip

    def _authorities(self) -> str | None:
        """Of the advertised address, where they are not public ones."""
        path = self._settings.advertised_ca
        if path is None:
            return None
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError):
            raise Permanent("setting_unusable", f"The file {path} (advertised_ca) cannot be read.") from None

    async def _read(self, file: ModelFile, offset: int) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._objects.read(blob_key(file.sha256), start=offset, chunk=_CHUNK):
                yield chunk
        except ObjectNotFound:
            raise Permanent("file_missing", f"{file.path} is not in the object store any more.") from None


def images_of(settings: Settings) -> Images:
    return Images(
        llama_cpp=settings.image_llama_cpp, llama_cpp_program=settings.image_llama_cpp_program,
        vllm=settings.image_vllm, litellm=settings.image_litellm, loader=settings.image_loader,
    )  # fmt: skip


def _check_spanning(spec: DeploySpec, inspection: ClusterInspection) -> None:
    """Raises Unsupported where a worker cannot be several pods."""
    version = inspection.version
    if (version.major, version.minor) < _NUMBERED_PODS:
        oldest = ".".join(map(str, _NUMBERED_PODS))
        raise Unsupported(
            f"The model needs the GPUs of several nodes, which takes Kubernetes {oldest}; this is {version.version}."
        )
    if spec.autoscale is not None:
        raise Unsupported(
            "The model needs the GPUs of several nodes, and a cluster does not scale such workers by itself; "
            "set the number of workers."
        )


def _secrets(
    spec: DeploySpec, plan: PodPlan, key: str | None, parameters: Mapping[str, SecretStr]
) -> dict[str, SecretStr]:
    """Under the names that the container knows them by."""
    made = {secret_name(name): value for name, value in parameters.items()}
    if key is None:
        made = {name: SecretStr(_UNTOLD) for name in plan.secrets}
    if plan.delivery is not None:
        made[LOADER_TOKEN] = SecretStr(token_of(key, spec.endpoint_id) if key else _UNTOLD)
    return made
