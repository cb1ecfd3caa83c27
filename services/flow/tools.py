"""What the steps of the flow service reach the world with."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from uuid import UUID

from services.flow.context import TaskContext
from shared.contracts.flows import EndpointAccess, FlowPort
from shared.jobs.run import Step
from shared.objects.store import ObjectStore
from shared.security.outgoing import Outgoing, outgoing
from shared.settings import Settings


class Credentials(Protocol):
    """Of `shared.contracts.ports.AppPort`."""

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]: ...


@dataclass(frozen=True)
class FlowTools:
    app: Credentials
    flows: FlowPort
    objects: ObjectStore
    settings: Settings

    @cached_property
    def outgoing(self) -> Outgoing:
        """Who may be asked, and who is believed."""
        return outgoing(self.settings)

    def context(self, step: Step, task: str) -> TaskContext:
        return TaskContext(
            step.job_id, task, outgoing=self.outgoing, openai_base_url=self.settings.flow_openai_base_url,
            store=self.objects, platform=_Platform(self.app, self.flows), on_progress=step.progress,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Platform:
    """Both ports of the app, as a task's context asks them."""

    app: Credentials
    flows: FlowPort

    async def provider_key(self, job_id: UUID) -> str | None:
        return await self.flows.provider_key(job_id)

    async def endpoint(self, job_id: UUID, endpoint: str) -> EndpointAccess:
        return await self.flows.endpoint(job_id, endpoint)

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        return await self.app.credential(job_id, credential_id)

    async def keep_artifact(self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str) -> UUID:
        return await self.flows.keep_artifact(job_id, task, name, media_type, size, sha256)

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> dict[str, Any]:
        return (await self.flows.artifact(job_id, artifact_id)).model_dump(mode="json")
