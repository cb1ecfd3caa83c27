"""The app's side of executions, in memory: what `FlowPort` and `AppPort` answer to a job that a test runs by itself."""

from typing import Any
from uuid import UUID, uuid4

from shared.contracts.flows import ArtifactInfo, ChildEnd, ChildStarted, EndpointAccess
from shared.jobs.outcomes import Permanent


class MemoryApp:
    def __init__(self) -> None:
        self.artifacts: dict[UUID, ArtifactInfo] = {}
        self.children: dict[tuple[UUID, str], ChildEnd] = {}
        self.started: list[tuple[str, str, int | None, dict[str, Any]]] = []
        self.cancelled: list[str] = []
        self.gone: set[str] = set()  # the flows that are not there

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        raise Permanent("credential_gone", "There are no credentials here.")

    async def provider_key(self, job_id: UUID) -> str | None:
        return None

    async def endpoint(self, job_id: UUID, endpoint: str) -> EndpointAccess:
        raise Permanent("endpoint_gone", "There are no endpoints here.")

    async def keep_artifact(self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str) -> UUID:
        made = ArtifactInfo(id=uuid4(), name=name, media_type=media_type, size=size, sha256=sha256)
        self.artifacts[made.id] = made
        return made.id

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> ArtifactInfo:
        if artifact_id not in self.artifacts:
            raise Permanent("artifact_gone", "There is no such file.")
        return self.artifacts[artifact_id]

    async def start_child(
        self, job_id: UUID, task: str, workflow_id: str, version: int | None, inputs: dict[str, Any]
    ) -> ChildStarted:
        self.started.append((task, workflow_id, version, inputs))
        if workflow_id in self.gone:
            raise Permanent("flow_gone", "There is no such workflow.")
        self.children.setdefault((job_id, task), ChildEnd(execution_id="ex-child", status="RUNNING"))
        return ChildStarted(execution_id=uuid4(), live=self.children[job_id, task].status == "RUNNING")

    async def child_end(self, job_id: UUID, task: str) -> ChildEnd:
        return self.children[job_id, task]

    async def cancel_child(self, job_id: UUID, task: str) -> None:
        self.cancelled.append(task)
