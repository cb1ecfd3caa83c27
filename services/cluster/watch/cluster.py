"""Watches one registered cluster under one lease: tells the app what is there as it changes, and when it cannot be seen.

The runtime's watcher follows the cluster's objects. Here: what of it the app is told and when, whether the account still
may do what it must, the inspection now and then, and with `healer` what others have deleted or changed.
"""

import asyncio
import json
from typing import Any

import structlog
from pydantic import SecretStr

from services.cluster.jobs.register_steps import PermissionsMissing, facts_of
from services.cluster.runtimes.base import Observation
from services.cluster.runtimes.kubernetes import inspect, permissions
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import Pace, Watcher
from services.cluster.sites.base import PodPlan, silent
from services.cluster.sites.kubernetes import KubernetesSite
from services.cluster.watch.healer import Healer
from services.cluster.watch.world import World
from shared import clock
from shared.contracts.clusters import WatchedCluster
from shared.contracts.deployments import DeploySpec, ExpectedEndpoint
from shared.jobs.outcomes import Permanent, StepError

DRIFT = ("removed_by_others", "changed_by_others")
NOT_OURS_ANY_MORE = ("stale_epoch", "cluster_gone")
_RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another observer looks after the cluster."""


class ClusterWatch:
    """`cluster` may be replaced while it runs by the same one with another policy."""

    def __init__(self, cluster: WatchedCluster, epoch: int, world: World) -> None:
        self.cluster = cluster
        self._epoch = epoch
        self._world = world
        self._app = world.app
        self._pace = world.pace

    async def run(self) -> None:
        """Until the lease is lost, or the kubeconfig cannot be used: it says so, and another try may be made later."""
        try:
            client = await self._connect()
        except Permanent as fault:
            if fault.code not in NOT_OURS_ANY_MORE:
                await self._app.reachable(self.cluster.id, self._epoch, fault.message)
            return
        seen_by = KubernetesRuntime(client, str(self.cluster.id))
        async with seen_by.watcher(Pace(ask=self._pace.ask)) as watcher:
            self._world.watchers[self.cluster.id] = watcher
            try:
                await _Look(self, client, watcher, self._world).run()
            except LeaseLost:
                log.info("cluster_left_to_another", cluster=str(self.cluster.id), epoch=self._epoch)
            finally:
                del self._world.watchers[self.cluster.id]

    @property
    def epoch(self) -> int:
        return self._epoch

    async def _connect(self) -> KubernetesClient:
        kubeconfig = await self._app.cluster_kubeconfig(self.cluster.id, self._epoch)
        return self._world.clients.client(self.cluster.id, kubeconfig, self._world.addresses)


class _Look:
    """One connection's time: from the first list until the end."""

    def __init__(self, watch: ClusterWatch, client: KubernetesClient, watcher: Watcher, world: World) -> None:
        self._watch = watch
        self._client = client
        self._watcher = watcher
        self._app = world.app
        self._pace = world.pace
        self._settings = world.settings
        self._id, self._epoch = watch.cluster.id, watch.epoch
        self._runtime = KubernetesRuntime(client, str(self._id), watcher)
        self._objects = world.objects
        self._healer = Healer(self._app, self._id, self._epoch, self._drift, self._mend, self._pace.heal)
        self._denied: StepError | None = None  # what the watcher cannot know: another cluster, permissions lost
        self._checked = False  # nothing is mended before it is known which cluster this is
        self._rules = ""
        self._told: str | None = None  # the code of the fault that the app knows
        self._suspected: tuple[str, float] | None = None  # a fault's code, since when

    async def run(self) -> None:
        duties = asyncio.create_task(self._duties(), name=f"duties-{self._id}")
        try:
            await self._follow()
        finally:
            duties.cancel()
            await asyncio.gather(duties, return_exceptions=True)
            await self._healer.close()

    # --- what is there

    async def _follow(self) -> None:
        now = asyncio.get_running_loop().time
        pending: set[str] = set()
        next_whole = 0.0
        async for changed in self._watcher.changes(every=self._pace.turn):
            pending |= changed
            try:
                if not await self._is_visible():
                    next_whole = 0.0
                elif now() >= next_whole:
                    await self._report_all()
                    pending, next_whole = set(), now() + self._pace.again
                elif pending:
                    await self._report(pending)
                    pending = set()
            except LeaseLost:
                raise
            except (
                Exception
            ) as error:  # the cluster or the database is away: what was not told is told at the next turn
                log.warning("cluster_not_told", cluster=str(self._id), error=f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(self._pace.turn)

    async def _is_visible(self) -> bool:
        """Whether there is something to report; tells the app of a fault that has lasted for a while."""
        fault = self._denied or self._watcher.fault
        if fault is None:
            self._suspected = None
            return self._watcher.synced.is_set()
        now = asyncio.get_running_loop().time()
        if self._suspected is None or self._suspected[0] != fault.code:
            self._suspected = (fault.code, now)
        if fault.code == self._told or now - self._suspected[1] < self._pace.grace:
            return False
        if not await self._app.reachable(self._id, self._epoch, await self._in_words(fault)):
            raise LeaseLost
        log.warning("cluster_unavailable", cluster=str(self._id), code=fault.code)
        self._told = fault.code
        return False

    async def _in_words(self, fault: StepError) -> str:
        """What the server forbids is asked for, so that it can be named."""
        if fault.code == "cluster_forbidden":
            try:
                if missing := await permissions.missing(self._client):
                    return PermissionsMissing(missing).message
            except StepError:
                return fault.message
        return fault.message

    async def _report_all(self) -> None:
        seen = await self._runtime.observe()
        if not await self._app.reachable(self._id, self._epoch, None):
            raise LeaseLost
        self._told = None
        if not await self._app.observe(self._id, self._epoch, [_dumped(one) for one in seen.values()]):
            raise LeaseLost
        for one in seen.values():
            self._consider(one.endpoint_id, one)
        for wanted in await self._app.expected(self._id, self._epoch) or []:
            if wanted.spec is not None and str(wanted.endpoint_id) not in seen:
                self._consider(str(wanted.endpoint_id), None)

    async def _report(self, endpoint_ids: set[str]) -> None:
        found = await asyncio.gather(*map(self._runtime.seen, endpoint_ids))
        seen = dict(zip(endpoint_ids, found, strict=True))
        told = {name: _dumped(one) if one is not None else None for name, one in seen.items()}
        if not await self._app.observe_some(self._id, self._epoch, told):
            raise LeaseLost
        for name, one in seen.items():
            self._consider(name, one)

    # --- what others have changed

    def _consider(self, endpoint_id: str, seen: Observation | None) -> None:
        if self._watch.cluster.heal and self._checked and _differs(seen) is not None:
            self._healer.see(endpoint_id)

    async def _drift(self, endpoint_id: str) -> str | None:
        if not self._watch.cluster.heal or self._denied or self._watcher.fault:
            return None
        return _differs(await self._runtime.seen(endpoint_id))

    async def _mend(self, one: ExpectedEndpoint) -> None:
        """Put the objects back as they were applied; one that has nothing at all is deployed anew."""
        assert one.spec is not None
        endpoint_id, site = str(one.endpoint_id), self._site()
        look = self._watcher.look(endpoint_id)
        if look.intent() is not None and look.of("Secret"):
            await self._runtime.heal(endpoint_id)
            return
        key = await self._app.endpoint_key(self._id, self._epoch, one.endpoint_id)
        parameters = await self._parameters(one.spec)
        plan = PodPlan.model_validate(one.plan) if one.plan else await site.plan(one.spec, parameters=list(parameters))
        workload = await site.workload(one.spec, plan, key=key, replicas=one.replicas, secrets=parameters)
        if look.intent() is not None:
            await self._runtime.heal(endpoint_id, workload)
            return
        await site.bring(one.spec, workload, silent)
        await self._runtime.apply(workload)

    async def _parameters(self, spec: DeploySpec) -> dict[str, SecretStr]:
        found = await self._app.endpoint_parameters(self._id, self._epoch, spec.endpoint_id)
        return {name: SecretStr(value) for name, value in found.items()}

    def _site(self) -> KubernetesSite:
        return KubernetesSite(self._runtime, self._settings, self._objects, self._watch.cluster.ingress_url)

    # --- now and then

    async def _duties(self) -> None:
        while True:
            try:
                await self._check()
                if self._checked and self._denied is None and self._is_due():
                    await self._inspect()
            except StepError:  # the watcher finds the same, and tells it
                pass
            except Exception as error:
                log.warning(
                    "cluster_duty_failed", cluster=str(self._id), error=f"{type(error).__name__}: {error}"[:300]
                )
            await asyncio.sleep(self._pace.duties if self._checked else self._pace.turn)

    async def _check(self) -> None:
        """Is this the registered cluster, and may we do what we must? All permissions are asked for only when the
        account's rules have changed, which is one request.
        """
        answer = await self._client.request("POST", _RULES, body=_rules_review())
        found = (answer.get("status") or {}).get("resourceRules") or []
        rules = json.dumps(sorted(json.dumps(one, sort_keys=True) for one in found))
        if rules == self._rules and self._denied is None:
            return
        self._denied = await self._denial()
        self._rules, self._checked = rules, True

    async def _denial(self) -> StepError | None:
        missing = await permissions.missing(self._client)
        if missing:
            return PermissionsMissing(missing)
        uid = self._watch.cluster.uid
        if uid is not None and await inspect.uid(self._client) != uid:
            return Permanent(
                "cluster_is_another", f"{self._client.server} is another cluster than the one that was registered."
            )
        return None

    def _is_due(self) -> bool:
        last = self._watch.cluster.inspected_at
        return last is None or (clock.now() - last).total_seconds() >= self._settings.inspect_clusters_seconds

    async def _inspect(self) -> None:
        found = await inspect.inspect(self._client, await self._client.version())
        await self._app.inspected(self._id, self._epoch, facts_of(found))
        self._watch.cluster = self._watch.cluster.model_copy(update={"inspected_at": found.inspected_at})


def _rules_review() -> dict[str, Any]:
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": permissions.NAMESPACE},
    }


def _differs(seen: Observation | None) -> str | None:
    """What others have done to an endpoint's objects, in a sentence."""
    if seen is None:
        return "Somebody deleted all of its objects."
    return seen.message or "Its objects differ." if seen.reason in DRIFT else None


def _dumped(one: Observation) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_none=True)
