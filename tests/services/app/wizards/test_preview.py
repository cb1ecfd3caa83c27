"""A preview is refused as its trigger would be, to those who may not trigger it, and changes nothing. No cluster is asked."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from services.app.clusters import repository as clusters
from services.app.context import AppContext
from services.app.endpoints import deploy
from services.app.models.tables import ScanOverrideRow
from services.app.wizards.contract import Visit
from services.app.wizards.tables import WorkflowRow
from shared.clock import now
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.jobs.tables import JobRow, TopicRow
from tests.services.app import rows
from tests.services.app.authorization import CONFIG, DIGEST
from tests.services.app.conftest import NoClusters, People, Person, caller_for

Json = dict[str, Any]
KEPT = ("platform.endpoint", "platform.audit", "jobs.job", "jobs.event")


class Asked(NoClusters):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.specs: list[DeploySpec] = []

    async def preview(self, spec: DeploySpec) -> DeployPreview:
        self.specs.append(spec)
        return await super().preview(spec)


class Drafts:
    """Drafts of one person in a project with a model and a cluster."""

    def __init__(self, client: httpx.AsyncClient, context: AppContext, person: Person, project: UUID) -> None:
        self.client, self.context, self.person, self.project = client, context, person, project
        self.clusters = context.clusters = Asked()
        self.model, self.cluster = uuid4(), uuid4()

    async def prepare(self) -> None:
        override = ScanOverrideRow(
            id=uuid4(), model_id=self.model, digest=DIGEST, reason="x", created_by=self.person.id, created_at=now()
        )
        model = rows.model(id=self.model, digest=DIGEST, project_id=self.project)
        await rows.insert(self.context.database, model, override, rows.cluster(id=self.cluster))

    async def draft(self, type: str = "model_deployment", **changes: Any) -> UUID:
        """A complete one, but for `changes`; `status` and `job_id` are the workflow's own."""
        values = {name: changes.pop(name) for name in ("status", "job_id") if name in changes}
        fields = {
            "project_id": str(self.project), "model_id": str(self.model), "cluster_id": str(self.cluster),
            "endpoint_name": "chat", "deploy_config": CONFIG, **changes,
        }  # fmt: skip
        row = WorkflowRow(
            id=uuid4(), type=type, owner_id=self.person.id, project_id=self.project, current_step=5, total_steps=6,
            fields=fields, field_steps={}, files={}, **{"status": "in_progress", **values},
        )  # fmt: skip
        await rows.insert(self.context.database, TopicRow(id=row.id), row)
        return row.id

    async def ask(self, draft: UUID, person: Person | None = None) -> httpx.Response:
        """The answer; whatever it is, nothing has changed."""
        before = await self.kept(draft)
        headers = (person or self.person).headers
        answer = await self.client.post(f"/workflows/{draft}/preview", headers=headers)
        assert await self.kept(draft) == before
        return answer

    async def refusal(self, **changes: Any) -> Json:
        answer = await self.ask(await self.draft(**changes))
        assert answer.headers["content-type"] == "application/problem+json"
        assert self.clusters.specs == []
        found: Json = answer.json()
        return found

    async def kept(self, draft: UUID) -> list[Any]:
        counted = [f"(SELECT count(*) FROM {table})" for table in KEPT]
        statement = f"SELECT {', '.join(counted)}, to_jsonb(w) FROM platform.workflow w WHERE id = :id"
        async with self.context.database.statement() as connection:
            return list((await connection.execute(text(statement), {"id": draft})).one())


@pytest.fixture
async def drafts(client: httpx.AsyncClient, app_context: AppContext, people: People) -> Drafts:
    project = await people.project(uuid4().hex)
    made = Drafts(client, app_context, await people.add("member", projects={project: "member"}), project)
    await made.prepare()
    return made


async def test_what_the_trigger_would_deploy_is_asked_for(drafts: Drafts) -> None:
    draft = await drafts.draft()
    for _ in range(2):  # the name stays free
        answer = await drafts.ask(draft)
        assert answer.status_code == 200
    assert answer.json()["fits"] is False
    assert answer.json()["problems"] == ["There is nothing here."]
    one, other = drafts.clusters.specs
    assert (one.name, one.model_id, one.cluster_id, one.digest) == ("chat", drafts.model, drafts.cluster, DIGEST)
    assert one.config.model_dump(exclude_none=True) == CONFIG
    assert one.endpoint_id != other.endpoint_id


async def test_a_failed_workflow_may_be_looked_at_again(drafts: Drafts) -> None:
    job = JobRow(id=uuid4(), kind="deploy_model", version=1, state="failed", input={}, project_id=drafts.project)
    await rows.insert(drafts.context.database, job)
    assert (await drafts.ask(await drafts.draft(status="failed", job_id=job.id))).status_code == 200


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"cluster_id": None}, "missing_fields", "cluster_id"),
        ({"endpoint_name": None, "deploy_config": None}, "missing_fields", "endpoint_name"),
        ({"model_id": str(UUID(int=1))}, "reference_not_found", "model_id"),
        ({"type": "model_security_scan"}, "preview_not_offered", None),
        ({"status": "completed"}, "workflow_finished", None),
        ({"status": "cancelled"}, "workflow_finished", None),
    ],
)
async def test_what_is_incomplete_or_over_is_refused(
    drafts: Drafts, changes: Json, code: str, param: str | None
) -> None:
    said = await drafts.refusal(**changes)
    assert (said["code"], said["param"]) == (code, param)


async def test_a_job_that_runs_has_begun_what_would_be_shown(drafts: Drafts) -> None:
    job = JobRow(id=uuid4(), kind="deploy_model", version=1, state="running", input={}, project_id=drafts.project)
    await rows.insert(drafts.context.database, job)
    assert (await drafts.refusal(job_id=job.id))["code"] == "workflow_locked"


async def test_the_refusals_of_the_trigger(drafts: Drafts, people: People) -> None:
    """The gate, the name, the cluster, the quota: the trigger's own sentences, at the step of the field."""
    unscanned = rows.model(digest="b" * 64, project_id=drafts.project)
    gone = rows.cluster(state="unavailable", reason="The server is away.")
    taken = rows.endpoint(drafts.project, drafts.model, drafts.cluster, name="chat", slug="chat")
    await rows.insert(drafts.context.database, unscanned, gone, taken)
    cases: list[tuple[Json, str, str | None]] = [
        ({"model_id": str(unscanned.id)}, "scan_required", "model_id"),
        ({"cluster_id": str(gone.id)}, "cluster_not_ready", "cluster_id"),
        ({}, "name_taken", "endpoint_name"),
    ]
    for changes, code, param in cases:
        said = await drafts.refusal(**changes)
        assert (said["code"], said["param"]) == (code, param)
        assert said["errors"][0]["step"] is not None
    admin = await people.add("admin")
    path = f"/projects/{drafts.project}"
    quotas = {"quotas": {"endpoints": 1}}
    (await drafts.client.patch(path, json=quotas, headers=admin.headers)).raise_for_status()
    said = await drafts.refusal(endpoint_name="another")
    assert said["code"] == "quota_exceeded"
    assert said["quotas"] == [{"quota": "endpoints", "limit": 1, "used": 1, "adding": 1}]


async def test_only_who_may_trigger_it(drafts: Drafts, people: People) -> None:
    draft = await drafts.draft()
    colleague = await people.add("member", projects={drafts.project: "manager"})
    people_ = {"colleague": colleague, "operator": await people.add("operator"), "admin": await people.add("admin")}
    found = {who: (await drafts.ask(draft, person)).status_code for who, person in people_.items()}
    assert found == {"colleague": 404, "operator": 403, "admin": 200}
    async with drafts.context.database.transaction() as session:
        await session.execute(
            text("UPDATE platform.member SET role = 'viewer' WHERE user_id = :id"), {"id": drafts.person.id}
        )
    answer = await drafts.ask(draft)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_a_cluster_is_not_deleted_between_the_look_at_it_and_the_endpoint(drafts: Drafts) -> None:
    """Whoever deletes it waits for the trigger's transaction, and then sees the endpoint; another deployment need not."""
    caller = caller_for(drafts.person, "member", {drafts.project: "member"})
    draft = await drafts.draft()
    database = drafts.context.database

    async def read(**how: bool) -> object:
        async with database.transaction() as session:
            await session.execute(text("SET LOCAL lock_timeout = '100ms'"))
            return await clusters.get(session, drafts.cluster, **how)

    async with database.transaction() as session:
        await deploy.draft(Visit(drafts.context, session, caller), await session.get_one(WorkflowRow, draft))
        with pytest.raises(OperationalError, match="lock timeout"):
            await read(lock=True)
        assert await read(share=True) is not None
    assert await read(lock=True) is not None
