"""The world of tasks in tests: the real context over a folder of objects, and an app that only remembers."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from services.flow.context import CalledProvider, Progress, TaskContext
from services.flow.tasks.registry import TASK_TYPES
from shared.contracts.flows import ArtifactInfo
from shared.jobs.outcomes import Permanent
from shared.objects.directory import DirectoryStore
from shared.security.addresses import AddressPolicy
from shared.security.outgoing import Outgoing
from shared.security.pins import parse_pin
from stepway.tasks import Provider, TaskError

JOB = UUID("0192f0c4-0000-7000-8000-000000000001")
TLS = httpx.create_ssl_context()
TYPES = {one.name: one for one in TASK_TYPES}


class Rows:
    """The app's answers, from dictionaries that a test fills."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.endpoints: dict[str, CalledProvider] = {}
        self.credentials: dict[UUID, dict[str, str]] = {}
        self.artifacts: dict[UUID, ArtifactInfo] = {}

    async def provider_key(self, job_id: UUID) -> str | None:
        assert job_id == JOB
        return self.key

    async def endpoint(self, job_id: UUID, endpoint: str) -> Provider:
        if endpoint not in self.endpoints:
            raise Permanent("endpoint_not_found", "There is no such endpoint.")
        return self.endpoints[endpoint]

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        if credential_id not in self.credentials:
            raise Permanent("credential_gone", "The credential is not there any more.")
        return self.credentials[credential_id]

    async def keep_artifact(self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str) -> UUID:
        assert job_id == JOB
        info = ArtifactInfo(id=uuid4(), name=name, media_type=media_type, size=size, sha256=sha256)
        self.artifacts[info.id] = info
        return info.id

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> ArtifactInfo:
        if artifact_id not in self.artifacts:
            raise Permanent("artifact_not_found", "There is no such file.")
        return self.artifacts[artifact_id]

    def add_credential(self, **fields: str) -> str:
        self.credentials[credential_id := uuid4()] = fields
        return str(credential_id)


class World:
    """`trust` are hosts that the operator trusts, `pins` as in the settings."""

    def __init__(self, folder: Path) -> None:
        self.rows = Rows()
        self.store = DirectoryStore(folder)
        self.trusted: set[str] = set()
        self.pins: list[str] = []
        self.allow_private = False
        self.openai = "https://api.openai.com/v1"
        self.tls = TLS

    def trust(self, port: int) -> None:
        self.trusted.add(f"127.0.0.1:{port}")

    def context(self, on_progress: Progress | None = None) -> TaskContext:
        policy = AddressPolicy(self.allow_private, frozenset(self.trusted), tuple(map(parse_pin, self.pins)))
        return TaskContext(
            JOB, "the_task", outgoing=Outgoing(policy, self.tls), openai_base_url=self.openai, store=self.store,
            flows=self.rows, app=self.rows, on_progress=on_progress,
        )  # fmt: skip

    async def run(self, name: str, **inputs: Any) -> dict[str, Any]:
        """As the engine does: the inputs checked by name, defaults filled in, and every output there that is declared."""
        kind = TYPES[name]
        assert kind.run is not None
        unknown = set(inputs) - {one.name for one in kind.inputs}
        assert not unknown, unknown
        for group in kind.one_of:
            assert sum(name in inputs for name in group) == 1, group
        filled = {one.name: one.default for one in kind.inputs if one.default is not None} | inputs
        outputs = dict(await kind.run(self.context(), filled))
        assert set(outputs) == {one.name for one in kind.outputs}
        return outputs

    async def fails(self, name: str, **inputs: Any) -> TaskError:
        with pytest.raises(TaskError) as failed:
            await self.run(name, **inputs)
        assert failed.value.message.endswith((".", "…", ")"))
        return failed.value
