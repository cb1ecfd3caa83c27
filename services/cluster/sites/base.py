"""A cluster as jobs and observers see it: all that differs between kinds of clusters is behind `Site`.

`local` is this machine, `kubernetes` a registered cluster; `jobs.tools` says which one an id means. Above the runtime,
which only runs what it is told, a site knows how a model becomes a workload there. Faults are `Permanent` and `Retry`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol
from uuid import UUID

import httpx
from pydantic import BaseModel, SecretStr

from services.cluster.engines.base import ContainerPlan, EnginePlan
from services.cluster.runtimes.base import MAX_REPLICAS, Progress, Runtime, Workload
from services.cluster.runtimes.containers import PULL_SECONDS, SLOWEST_FETCH, Claim, Exposure
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import Preview
from shared.jobs.outcomes import Permanent


class DeliveryPlan(BaseModel):
    """How the model's files come to the pods; see `containers.Delivery`, which also lists the files."""

    mode: Literal["fetch", "claim", "push"]
    digest: str
    size_bytes: int = 0  # of all files
    url: str | None = None
    claim: Claim | None = None


class PodPlan(ContainerPlan):
    """What an engine plans for pods, and what the cluster adds to it. `delivery` None: a model without files."""

    delivery: DeliveryPlan | None = None
    exposure: Exposure | None = None

    @property
    def ready_seconds(self) -> float:
        """The server's own time, after its image (and, where each worker fetches it, the model) has been brought."""
        fetched = self.delivery if self.delivery and self.delivery.mode == "fetch" else None
        size = max(self.container.resources.memory_bytes, fetched.size_bytes) if fetched else 0
        return self.container.probes.start_seconds + PULL_SECONDS + size / SLOWEST_FETCH


Planned = EnginePlan | PodPlan


def count_of(plan: Planned, replicas: int | None) -> int:
    """How many workers: the plan's number, or another one. Raises Permanent (`insufficient_capacity`) for too many."""
    count = plan.replicas if replicas is None else replicas
    if count > MAX_REPLICAS:
        raise Permanent(
            "insufficient_capacity", f"It would take {count} workers, and an endpoint has at most {MAX_REPLICAS}."
        )
    return count


def silent(_percent: float | None, _message: str) -> None:
    """For callers who need no progress."""


class Site(Protocol):
    @property
    def runtime(self) -> Runtime: ...

    async def plan(
        self, spec: DeploySpec, *, parameters: Sequence[str] = (), dry: bool = False, on_progress: Progress = silent
    ) -> Planned:
        """Which engine runs the model here, how many workers there are, what each takes, how its files come.

        `parameters` are the LiteLLM parameters that a cloud model's credential gives, by name. The plan holds no
        secret, and is made once: what follows from it stays the same when a job goes on after a crash. Leaves nothing
        behind. With `dry`, nothing is made for a moment either, to find something out: it is taken to be well.
        """

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
        """What the runtime shall run. `key` None: only to be looked at, with `check` and `preview`.

        `replicas` other than the plan's: workers were added or removed since. `secrets` are values of LiteLLM
        parameters, by name.
        """

    async def check(self, workload: Workload) -> None:
        """Whether there is room for it, in place of what the endpoint has now. Raises Permanent naming what lacks."""

    async def preview(self, workload: Workload) -> Preview:
        """What `check` weighs, in numbers and words, and the objects that would be made. Changes nothing."""

    async def check_more(self, endpoint_id: UUID, before: int, after: int, memory_bytes: int) -> None:
        """Whether there is room for the workers that are missing; each takes `memory_bytes`. Raises as `check`."""

    async def bring(self, spec: DeploySpec, workload: Workload, on_progress: Progress) -> None:
        """The model's bytes to where workers read them; what is there already is kept."""

    async def forget(self, endpoint_id: UUID, digest: str | None = None) -> None:
        """Take away what `bring` left: the files of one digest that no worker reads any more, or, after
        `runtime.remove`, all that is outside the runtime's reach.
        """

    def transport(self) -> httpx.AsyncBaseTransport | None:
        """How to speak to workers whose `via` is `api_server`; None where there are none."""
