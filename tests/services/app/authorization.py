"""The table of who may call which route, and the things that its paths name. `test_authorization` goes through it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from services.app.context import AppContext
from services.app.credentials.tables import CredentialRow
from services.app.flows import slugs
from services.app.flows.tables import ArtifactRow, ExecutionRow, FlowRow, VersionRow
from services.app.models.tables import ModelRow, ScanOverrideRow, ScanRow
from services.app.schedules.tables import ScheduleRow
from services.app.templates.tables import TemplateRow
from services.app.triggers.tables import TriggerRow
from services.app.webhooks import secrets
from services.app.webhooks.tables import MessageRow, WebhookRow
from services.app.wizards.tables import WorkflowRow
from services.app.workflow_servers.tables import WorkflowRunRow, WorkflowServerRow
from services.gateway.table import Route, RouteTable
from shared.clock import now
from shared.contracts.flows import RUN_FLOW
from shared.jobs.tables import JobRow, TopicRow
from shared.objects.store import blob_key
from tests.services.app import rows
from tests.services.app.conftest import People, Person
from tests.testbed.certificates import as_yaml, kubeconfig

CONFIG = {"concurrent_requests": 1, "avg_sequence_length": 50, "avg_context_length": 50}
DIGEST = "a" * 64
KEY = {"api_key": "x"}
FLOW = {"name": "a flow", "tasks": [{"ref": "greet", "type": "text.size", "input": {"text": "x"}}]}
EXECUTION = "/flow/workflows/{flow}/executions/{execution}"
ENDED = "/flow/workflows/{flow}/executions/{ended}"
DAILY = {"cron": "0 9 * * *"}
SERVER = {"name": "s", "instance": "{unique}"}
HOOK = {"url": "https://bots.example/hook", "events": ["job.*"]}


class Statuses(NamedTuple):
    nobody: int  # without a key
    viewer: int  # of the platform, and of the project
    other: int  # a member of another project
    member: int  # of the project
    manager: int  # of the project
    operator: int
    admin: int


PEOPLE: dict[str, tuple[str, str | None]] = {
    "viewer": ("viewer", "viewer"), "other": ("member", None), "member": ("member", "member"),
    "manager": ("member", "manager"), "operator": ("operator", None), "admin": ("admin", None),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What is in braces stands for things of someone else, made anew for every call; `{project}` is the project.

    `bound` is the answer to an admin's key that is bound to another project; by default as to a member of that one for
    what is the project's, as to any admin for what is read, and 403 for changes to what is everyone's.
    """

    method: str
    path: str
    expected: tuple[int, ...]
    body: dict[str, Any] | None = field(default=None, hash=False)
    bound: int | None = None

    @property
    def statuses(self) -> "Statuses":
        return Statuses(*self.expected)

    @property
    def is_open(self) -> bool:
        """Whether no key makes a difference: anyone may, or only who shows something else."""
        return len(set(self.expected)) == 1

    def when_bound(self) -> int:
        if self.bound is not None or self.is_open:
            return self.bound or self.statuses.admin
        if self.statuses.other in (404, 422):
            return self.statuses.other
        return self.statuses.admin if self.method == "GET" else 403

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


OPEN = (200,) * 7
BY_TOKEN = (401,) * 7  # takes the token of an endpoint's pods, and no key
EVERYONE = (401, 200, 200, 200, 200, 200, 200)
SEEN = (401, 200, 404, 200, 200, 200, 200)
BEGUN = (401, 403, 422, 200, 200, 200, 200)
OPERATED = (401, 403, 403, 403, 403, 202, 202)
KUBECONFIG = as_yaml(kubeconfig(user={"token": "abcdef"})).decode()
BEGIN = {"workflow_total_steps": 3, "step_number": 1}
TABLE = [
    Row("GET", "/me", EVERYONE),
    Row("GET", "/users", (401, 403, 200, 200, 200, 200, 200)),
    Row("POST", "/users", (401, 403, 403, 403, 403, 403, 201), {"name": "{unique}"}),
    Row("GET", "/users/{user}", (401, 403, 200, 200, 200, 200, 200)),
    Row("PATCH", "/users/{user}", (401, 403, 403, 403, 403, 403, 200), {"role": "admin"}),
    Row("DELETE", "/users/{user}", (401, 403, 403, 403, 403, 403, 204)),
    Row("GET", "/keys", EVERYONE),
    Row("POST", "/keys", (401, 201, 201, 201, 201, 201, 201), {"name": "k"}, 201),
    Row("POST", "/keys", (401, 403, 403, 403, 403, 403, 201), {"name": "k", "user_id": "{user}"}),
    Row("POST", "/keys", (401, 201, 422, 201, 201, 201, 201), {"name": "k", "project_id": "{project}"}),
    Row("GET", "/keys/{key}", (401, 404, 404, 404, 404, 404, 200)),
    Row("DELETE", "/keys/{key}", (401, 404, 404, 404, 404, 404, 204)),
    Row("POST", "/login", EVERYONE, {"key": "{own_key}"}),
    Row("GET", "/login", EVERYONE),
    Row("DELETE", "/login", (204,) * 7),
    Row("GET", "/projects", EVERYONE),
    Row("POST", "/projects", (401, 403, 201, 201, 201, 201, 201), {"name": "{unique}"}),
    Row("GET", "/projects/{project}", SEEN),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 200, 403, 200), {"description": "x"}),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 403, 403, 200), {"policy": {"require_scan": False}}),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 403, 403, 200), {"quotas": {"models": 9}}),
    Row("DELETE", "/projects/{bare}", (401, 403, 404, 403, 204, 403, 204)),
    Row("GET", "/projects/{project}/members", SEEN),
    Row("GET", "/projects/{project}/members/{somebody}", SEEN),
    Row("PUT", "/projects/{project}/members/{user}", (401, 403, 404, 403, 201, 403, 201), {"role": "manager"}),
    Row("DELETE", "/projects/{project}/members/{somebody}", (401, 403, 404, 403, 204, 403, 204)),
    Row("GET", "/credential-types", EVERYONE),
    Row("GET", "/credentials", EVERYONE),
    Row("POST", "/credentials", (401, 403, 201, 201, 201, 201, 201), {"name": "c", "type": "openai", "fields": KEY}),
    Row("POST", "/credentials", (401, 403, 422, 201, 201, 201, 201),
        {"name": "c", "type": "openai", "fields": KEY, "project_id": "{project}"}),
    Row("GET", "/credentials/{shared}", SEEN),
    Row("PATCH", "/credentials/{shared}", (401, 403, 404, 200, 200, 200, 200), {"name": "x"}),
    Row("DELETE", "/credentials/{shared}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 200)),
    Row("PATCH", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 200), {"name": "x"}),
    Row("DELETE", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 204)),
    Row("GET", "/templates", EVERYONE),
    Row("POST", "/templates", (401, 403, 201, 201, 201, 201, 201), {"name": "{unique}", "deploy_config": CONFIG}),
    Row("GET", "/templates/{template}", EVERYONE),
    Row("PATCH", "/templates/{template}", (401, 403, 403, 403, 403, 200, 200), {"description": "x"}),
    Row("DELETE", "/templates/{template}", (401, 403, 403, 403, 403, 204, 204)),
    Row("GET", "/webhooks", EVERYONE),
    Row("POST", "/webhooks", (401, 403, 422, 201, 201, 201, 201), {"project_id": "{project}", **HOOK}),
    Row("POST", "/webhooks/signing-secret?project_id={project}", (401, 403, 422, 403, 200, 403, 200)),
    Row("GET", "/webhooks/deliveries", EVERYONE),
    Row("GET", "/webhooks/deliveries?project_id={project}", (401, 200, 422, 200, 200, 200, 200)),
    Row("POST", "/webhooks/deliveries/{delivery}/redeliver", (401, 403, 404, 202, 202, 202, 202)),
    Row("GET", "/webhooks/{webhook}", SEEN),
    Row("PUT", "/webhooks/{webhook}", (401, 403, 404, 200, 200, 200, 200), HOOK),
    Row("DELETE", "/webhooks/{webhook}", (401, 403, 404, 204, 204, 204, 204)),
    Row("POST", "/webhooks/{webhook}/test", (401, 403, 404, 202, 202, 202, 202)),
    Row("POST", "/webhooks/{webhook}/secret", (401, 403, 404, 200, 200, 200, 200)),
    Row("GET", "/webhooks/{webhook}/deliveries", SEEN),
    Row("GET", "/flow/workflows/{automatic}/schedules", SEEN),
    Row("POST", "/flow/workflows/{automatic}/schedules", (401, 403, 404, 201, 201, 201, 201), DAILY),
    Row("GET", "/flow/workflows/{automatic}/schedules/{schedule}", SEEN),
    Row("PUT", "/flow/workflows/{automatic}/schedules/{schedule}", (401, 403, 404, 200, 200, 200, 200), DAILY),
    Row("DELETE", "/flow/workflows/{automatic}/schedules/{schedule}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/flow/workflows/{automatic}/triggers", SEEN),
    Row("POST", "/flow/workflows/{automatic}/triggers", (401, 403, 404, 201, 201, 201, 201), {}),
    Row("GET", "/flow/workflows/{automatic}/triggers/{trigger}", SEEN),
    Row("PUT", "/flow/workflows/{automatic}/triggers/{trigger}", (401, 403, 404, 200, 200, 200, 200), {}),
    Row("DELETE", "/flow/workflows/{automatic}/triggers/{trigger}", (401, 403, 404, 204, 204, 204, 204)),
    Row("POST", "/flow/triggers/{trigger}", BY_TOKEN, {}),
    Row("GET", "/models/providers", EVERYONE),
    Row("GET", "/models/catalog", EVERYONE),
    Row("GET", "/icons", EVERYONE),
    Row("GET", "/icons/providers/openai.png", (200,) * 7),
    Row("GET", "/flow/task-types", EVERYONE),
    Row("GET", "/flow/task-types/{task_type}", EVERYONE),
    Row("GET", "/flow/workflows", EVERYONE),
    Row("POST", "/flow/workflows", (401, 403, 422, 201, 201, 201, 201), {**FLOW, "project_id": "{project}"}),
    Row("PUT", "/flow/workflows", (401, 403, 422, 201, 201, 201, 201), {**FLOW, "name": "one", "project_id": "{project}"}),
    Row("POST", "/flow/workflows/validate", (401, 400, 400, 400, 400, 400, 400), {}, 400),
    Row("GET", "/flow/workflows/{flow}", SEEN),
    Row("PUT", "/flow/workflows/{flow}", (401, 403, 404, 200, 200, 200, 200), {**FLOW, "name": "another name"}),
    Row("DELETE", "/flow/workflows/{unused}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/flow/workflows/{flow}/versions", SEEN),
    Row("GET", "/flow/workflows/{flow}/versions/{first}", SEEN),
    Row("POST", "/flow/workflows/{flow}/execute", (401, 403, 404, 202, 202, 202, 202), {"input": {}}),
    Row("POST", "/flow/workflows/{flow}/executions", (401, 403, 404, 202, 202, 202, 202), {"inputs": {}}),
    Row("GET", "/flow/workflows/{flow}/executions", SEEN),
    Row("GET", "/flow/executions", EVERYONE),
    Row("GET", EXECUTION, SEEN),
    Row("GET", f"{ENDED}?wait=30", SEEN),
    Row("GET", f"{ENDED}/events", (401, 204, 404, 204, 204, 204, 204)),
    Row("GET", f"{ENDED}/tasks/{{task}}", SEEN),
    Row("GET", f"{ENDED}/artifacts/{{artifact}}", SEEN),
    Row("GET", "/flow/files", EVERYONE),
    Row("POST", "/flow/files?project_id={project}", (401, 403, 422, 201, 201, 201, 201), {"any": "bytes"}),
    Row("GET", "/flow/files/{file}", SEEN),
    Row("GET", "/flow/files/{file}/content", SEEN),
    Row("DELETE", "/flow/files/{file}", (401, 403, 404, 204, 204, 204, 204)),
    Row("POST", f"{EXECUTION}/events/{{event}}", (401, 403, 404, 200, 200, 200, 200), {"yes": "y"}),
    Row("POST", f"{EXECUTION}/cancel", (401, 403, 404, 403, 403, 200, 200)),
    Row("POST", f"{ENDED}/retry", (401, 403, 404, 403, 403, 200, 200)),
    Row("DELETE", ENDED, (401, 403, 404, 403, 403, 204, 204)),
    Row("GET", "/workflow-servers", EVERYONE),
    Row("GET", "/workflow-servers?project_id={project}", (401, 200, 422, 200, 200, 200, 200)),
    Row("POST", "/workflow-servers", (401, 403, 422, 201, 201, 201, 201), {**SERVER, "project_id": "{project}"}),
    Row("GET", "/workflow-servers/{server}", SEEN),
    Row("GET", "/workflow-servers/{server}/workflows", SEEN),
    Row("POST", "/workflow-servers/{server}/report", (401, 403, 404, 403, 403, 403, 403), {"gone": ["r"]}),
    Row("DELETE", "/workflow-servers/{server}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/workflow-runs", EVERYONE),
    Row("GET", "/workflow-runs?server_id={server}", SEEN),
    Row("GET", "/workflow-runs/{run}", SEEN),
    Row("POST", "/workflow-runs/{run}/cancel", (401, 403, 404, 202, 202, 202, 202)),
    Row("GET", "/audit", (401, 403, 403, 403, 200, 403, 200)),
    Row("GET", "/audit?project_id={project}", (401, 403, 403, 403, 200, 403, 200), None, 404),
    Row("GET", "/healthz", OPEN),
    Row("GET", "/readyz", OPEN),
    Row("GET", "/docs/errors", OPEN),
    Row("GET", "/openapi.json", OPEN),
    Row("GET", "/models", EVERYONE),
    Row("GET", "/models?source=catalog", EVERYONE),
    Row("GET", "/models/{model}", SEEN),
    Row("GET", "/models/{everyones}", EVERYONE),
    Row("PATCH", "/models/{model}", (401, 403, 404, 200, 200, 200, 200), {"description": "x"}),
    Row("PATCH", "/models/{everyones}", (401, 403, 403, 403, 403, 200, 200), {"description": "x"}),
    Row("DELETE", "/models/{idle}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/models/{model}/scans", SEEN),
    Row("GET", "/models/{model}/scans/{scan}", SEEN),
    Row("GET", "/models/{model}/scan-overrides", SEEN),
    Row("POST", "/models/{model}/scan-overrides", (401, 403, 404, 403, 403, 403, 201), {"reason": "we looked"}),
    Row("POST", "/models/{everyones}/scan-overrides", (401, 403, 403, 403, 403, 403, 201), {"reason": "we looked"}),
    Row("DELETE", "/models/{model}/scan-overrides/{override}", (401, 403, 404, 403, 403, 403, 204)),
    Row("GET", "/clusters", EVERYONE),
    Row("GET", "/clusters/clusters", EVERYONE),
    Row("GET", "/clusters/{cluster}", EVERYONE),
    Row("PATCH", "/clusters/{cluster}", (401, 403, 403, 403, 403, 200, 200), {"name": "{unique}"}),
    Row("DELETE", "/clusters/{empty}", OPERATED),
    Row("DELETE", "/clusters/{cluster}?force=true", (401, 403, 403, 403, 403, 204, 204)),
    Row("PUT", "/clusters/{empty}/credentials", OPERATED, {"configuration_file": KUBECONFIG}),
    Row("POST", "/clusters/{empty}/inspect", OPERATED),
    Row("GET", "/clusters/{empty}/orphans", (401, 403, 403, 403, 403, 200, 200), None, 403),
    Row("DELETE", "/clusters/{empty}/orphans", OPERATED),
    Row("GET", "/clusters/recommended/{draft}", (401, 404, 404, 404, 404, 200, 200)),
    Row("GET", "/endpoints", EVERYONE),
    Row("GET", "/endpoints/{endpoint}", SEEN),
    Row("PATCH", "/endpoints/{endpoint}", (401, 403, 404, 202, 202, 202, 202), {"replicas": 3}),
    Row("POST", "/endpoints/{endpoint}/stop", (401, 403, 404, 202, 202, 202, 202)),
    Row("POST", "/endpoints/{endpoint}/start", (401, 403, 404, 409, 409, 409, 409)),
    Row("DELETE", "/endpoints/{endpoint}", (401, 403, 404, 202, 202, 202, 202)),
    Row("GET", "/endpoints/{endpoint}/workers", SEEN),
    Row("GET", "/endpoints/{endpoint}/workers/{worker}", SEEN),
    Row("DELETE", "/endpoints/{endpoint}/workers", (401, 403, 404, 202, 202, 202, 202)),
    Row("DELETE", "/endpoints/{endpoint}/workers/{worker}", (401, 403, 404, 202, 202, 202, 202)),
    Row("GET", "/endpoints/{endpoint}/events", SEEN),
    Row("GET", "/endpoints/{endpoint}/logs", SEEN),
    Row("GET", "/endpoints/{endpoint}/logs?follow=true", SEEN),
    Row("POST", "/endpoints/{endpoint}/model-files", BY_TOKEN),
    Row("GET", "/endpoints/{endpoint}/model-files/{number}", BY_TOKEN),
    Row("GET", "/jobs", EVERYONE),
    Row("GET", "/jobs/{failed}", SEEN),
    Row("GET", "/jobs/{failed}?wait=30", SEEN),
    Row("GET", "/jobs/{failed}/events", (401, 204, 404, 204, 204, 204, 204)),
    Row("POST", "/jobs/{pending}/cancel", (401, 403, 404, 403, 403, 200, 200)),
    Row("POST", "/jobs/{failed}/retry", (401, 403, 404, 403, 403, 200, 200)),
    Row("GET", "/jobs/{registration}", (401, 404, 404, 404, 404, 200, 200)),
    Row("POST", "/jobs/{registration}/cancel", (401, 404, 404, 404, 404, 200, 200)),
    Row("GET", "/wizards", EVERYONE),
    Row("GET", "/wizards/model_deployment", EVERYONE),
    Row("GET", "/workflows", EVERYONE),
    Row("GET", "/workflows/{draft}", (401, 404, 404, 404, 404, 200, 200)),
    Row("DELETE", "/workflows/{draft}", (401, 404, 404, 404, 404, 403, 204)),
    Row("POST", "/workflows/{draft}/cancel", (401, 404, 404, 404, 404, 403, 200)),
    Row("POST", "/workflows/{draft}/preview", (401, 404, 404, 404, 404, 403, 422)),
    Row("POST", "/workflows/{stopped}/retry", (401, 404, 404, 404, 404, 200, 200)),
    Row("GET", "/workflows/{stopped}/events", (401, 404, 404, 404, 404, 204, 204)),
    Row("POST", "/models/cloud-model-workflow", BEGUN, {**BEGIN, "project_id": "{project}"}),
    Row("POST", "/models/local-model-workflow", BEGUN, {**BEGIN, "project_id": "{project}"}),
    Row("POST", "/models/local-model-workflow", BEGUN, {**BEGIN, "proprietary_credential_id": "{shared}"}),
    Row("POST", "/models/deploy-workflow", BEGUN, {**BEGIN, "project_id": "{project}"}),
    Row("POST", "/models/deploy-workflow", BEGUN, {**BEGIN, "model_id": "{model}"}),
    Row("POST", "/models/deploy-workflow", BEGUN, {**BEGIN, "credential_id": "{shared}"}),
    Row("POST", "/models/deploy-workflow", (401, 403, 422, 422, 422, 422, 422), {**BEGIN, "credential_id": "{personal}"}),
    Row("POST", "/models/deploy-workflow", (401, 403, 404, 404, 404, 403, 200),
        {"workflow_id": "{draft}", "step_number": 3, "template_id": "{template}"}),
    Row("POST", "/models/security-scan", BEGUN, {**BEGIN, "model_id": "{model}"}),
    Row("POST", "/endpoints/add-worker", BEGUN, {**BEGIN, "endpoint_id": "{endpoint}"}),
    Row("POST", "/clusters/clusters", (401, 403, 403, 403, 403, 200, 200), {**BEGIN, "name": "{unique}"}),
    Row("GET", "/endpoints/{endpoint}/v1/models", SEEN),
    Row("POST", "/endpoints/{endpoint}/v1/completions", (401, 503, 404, 503, 503, 503, 503), {"prompt": "x"}),
]  # fmt: skip


@dataclass(frozen=True)
class Things:
    """A project with things of somebody else in it."""

    project: UUID
    bare: UUID  # the same, without anything in it
    names: dict[str, str]


async def make_things(context: AppContext, people: People, routes: RouteTable) -> Things:
    project, bare = await people.project(uuid4().hex), await people.project(uuid4().hex)
    user = await people.add("member")
    somebody = await people.add("member", projects={project: "member"})
    ids = {name: uuid4() for name in NAMES}
    await rows.insert(
        context.database, *_credentials(context, ids, project, somebody), *_served(context, ids, project, somebody)
    )
    await rows.insert(context.database, *_work(ids, project, somebody))
    flows = await _flows(context, ids, project, somebody)
    routes.replace(ids["endpoint"], _route(ids["endpoint"], project))
    named = {**ids, "project": project, "bare": bare, "user": user.id, "somebody": somebody.id, "key": user.key_id}
    return Things(
        project,
        bare,
        {name: str(value) for name, value in named.items()}
        | flows
        | {"unique": uuid4().hex, "worker": f"{ids['endpoint']}-1", "own_key": "none", "number": "0"},
    )


NAMES = (
    "shared", "personal", "template", "model", "everyones", "idle", "scan", "override", "cluster", "empty", "coming",
    "endpoint", "failed", "pending", "registration", "draft", "stopped",
    "flow", "unused", "execution", "ended", "artifact", "file",
    "webhook", "delivery", "automatic", "schedule", "trigger", "server", "run",
)  # fmt: skip


def _credentials(context: AppContext, ids: dict[str, UUID], project: UUID, owner: Person) -> list[Any]:
    def credential(row_id: UUID, project_id: UUID | None) -> CredentialRow:
        sealed = context.keyring.seal(b"{}", f"credential:{row_id}")
        values = {"id": row_id, "name": uuid4().hex, "type": "huggingface", "owner_id": owner.id, "fields": {}}
        return CredentialRow(**values, sealed=sealed, project_id=project_id)

    template = TemplateRow(
        id=ids["template"], name=uuid4().hex, template_type="chat", deploy_config=CONFIG, created_by=owner.id
    )
    return [
        credential(ids["shared"], project), credential(ids["personal"], None), template,
        *_hooks(context, ids, project), *_automatic(ids, project, owner), *_joined(ids, project, owner),
    ]  # fmt: skip


def _hooks(context: AppContext, ids: dict[str, UUID], project: UUID) -> list[Any]:
    sealed = secrets.sealed_first(context.keyring, secrets.context_of(ids["webhook"]), secrets.new_secret())
    return [
        WebhookRow(id=ids["webhook"], project_id=project, url="https://bots.example/x", events=["*"], sealed=sealed),
        MessageRow(
            id=ids["delivery"], project_id=project, webhook_id=ids["webhook"], receiver=ids["webhook"],
            lane=ids["webhook"], topic=ids["webhook"], sequence=1, event="job.failed", body="{}", state="failed",
        ),
    ]  # fmt: skip


def _automatic(ids: dict[str, UUID], project: UUID, owner: Person) -> list[Any]:
    """A flow that starts by itself."""
    task = {"name": "t", "type": "text.template", "spelled": "text.template", "inputs": {"template": "x"}}
    flow_id = ids["automatic"]
    return [
        FlowRow(id=flow_id, slug=slugs.new("wf"), project_id=project, name="f", dialect="refs", version=1),
        VersionRow(flow_id=flow_id, number=1, definition={"name": "f", "tasks": [task]}, dialect="refs"),
        ScheduleRow(
            id=ids["schedule"], flow_id=flow_id, cron="0 9 * * *", timezone="UTC", inputs={}, enabled=False,
            misfire="skip", owner_id=owner.id,
        ),
        TriggerRow(
            id=ids["trigger"], token=str(ids["trigger"]), flow_id=flow_id, scheme="standard", enabled=False, sealed=b"",
            owner_id=owner.id,
        ),
    ]  # fmt: skip


def _joined(ids: dict[str, UUID], project: UUID, owner: Person) -> list[Any]:
    """A workflow server with a run."""
    served: list[dict[str, Any]] = [{"name": name, "start_schema": None, "events": []} for name in ("greet", "ask")]
    moment = now()
    return [
        WorkflowServerRow(
            id=ids["server"], project_id=project, name="s", instance="i", workflows=served, owner_id=owner.id,
            key_id=owner.key_id,
        ),
        WorkflowRunRow(
            id=ids["run"], project_id=project, server_id=ids["server"], handler_id="h", run_id="r", workflow="greet",
            status="running", started_at=moment, updated_at=moment,
        ),
    ]  # fmt: skip


def _served(context: AppContext, ids: dict[str, UUID], project: UUID, owner: Person) -> list[Any]:
    def model(name: str, project_id: UUID | None) -> ModelRow:
        return rows.model(id=ids[name], project_id=project_id, digest=DIGEST, created_by=owner.id)

    observed = {"workers": [{"id": f"{ids['endpoint']}-{number}", "state": "ready"} for number in range(2)]}
    desired = {"replicas": 2, "concurrency": 1, "memory_bytes": 1, "generation": 1}
    return [
        model("model", project), model("everyones", None), model("idle", project),
        ScanRow(id=ids["scan"], model_id=ids["model"], job_id=uuid4(), status="safe", digest=DIGEST),
        ScanOverrideRow(
            id=ids["override"], model_id=ids["model"], digest=DIGEST, reason="x", created_by=owner.id, created_at=now()
        ),
        rows.cluster(id=ids["cluster"]), rows.cluster(id=ids["empty"]),
        rows.cluster(id=ids["coming"], state="registering"),
        rows.endpoint(
            project, ids["model"], ids["cluster"], id=ids["endpoint"], desired=desired, observed=observed,
            created_by=owner.id, sealed=context.keyring.seal(b"worker key", f"endpoint:{ids['endpoint']}"),
        ),
    ]  # fmt: skip


def _work(ids: dict[str, UUID], project: UUID, owner: Person) -> list[Any]:
    def job(job_id: UUID, state: str, **values: Any) -> JobRow:
        given = {"kind": "import_model", "project_id": project, "input": {"model_id": str(ids["idle"])}, **values}
        return JobRow(id=job_id, version=1, state=state, owner_id=owner.id, **given)

    def workflow(name: str, fields: dict[str, Any], **values: Any) -> list[Any]:
        row = WorkflowRow(
            id=ids[name], owner_id=owner.id, project_id=project, current_step=1, total_steps=6, fields=fields,
            field_steps={}, files={}, **values,
        )  # fmt: skip
        return [TopicRow(id=ids[name]), row]

    served = {"project_id": str(project), "model_id": str(ids["model"]), "deploy_config": CONFIG}
    stopped = uuid4()
    registration = {
        "kind": "register_cluster",
        "project_id": None,
        "resource_type": "cluster",
        "resource_id": ids["coming"],
    }
    return [
        job(ids["failed"], "failed"), job(ids["pending"], "pending"), job(stopped, "failed", topic=ids["stopped"]),
        job(ids["registration"], "pending", input={"cluster_id": str(ids["coming"])}, **registration),
        *workflow("draft", served, type="model_deployment", status="in_progress"),
        *workflow("stopped", {}, type="local_model_onboarding", status="failed", job_id=stopped),
    ]  # fmt: skip


async def _flows(context: AppContext, ids: dict[str, UUID], project: UUID, owner: Person) -> dict[str, str]:
    """A flow with a living execution and a failed one that has a file, and a flow without any."""
    short = {name: uuid4().hex[:8] for name in ("flow", "unused", "execution", "ended")}
    ids_shown = {name: f"{'wf' if name in ('flow', 'unused') else 'ex'}-{text}" for name, text in short.items()}
    task = {"name": "greet", "type": "text.size", "inputs": {"text": "x"}}
    definition = {"name": "a flow", "tasks": [task]}

    def flow(name: str) -> list[Any]:
        row = FlowRow(
            id=ids[name], slug=ids_shown[name], project_id=project, name="a flow", dialect="refs", version=1, revision=1,
            created_by=owner.id,
        )  # fmt: skip
        return [row, VersionRow(flow_id=ids[name], number=1, definition=definition, dialect="refs")]

    def execution(name: str, state: str, status: str) -> list[Any]:
        run = {"flow_id": str(ids["flow"]), "version": 1, "flow": definition, "inputs": {}, "credentials": []}
        job = JobRow(
            id=ids[name], kind=RUN_FLOW, version=1, state=state, owner_id=owner.id, project_id=project, input=run,
            resource_type="flow", resource_id=ids["flow"],
        )  # fmt: skip
        return [job, ExecutionRow(
            id=ids[name], slug=ids_shown[name], flow_id=ids["flow"], version=1, project_id=project, inputs={}, trigger="api",
            status=status,
        )]  # fmt: skip

    await context.objects.put(blob_key(DIGEST), b"12345")
    file = {"name": "a.txt", "media_type": "text/plain", "size": 5, "sha256": DIGEST}
    artifact = ArtifactRow(id=ids["artifact"], execution_id=ids["ended"], task="greet", **file)
    await rows.insert(
        context.database, *flow("flow"), *flow("unused"), *execution("execution", "pending", "PENDING"),
        *execution("ended", "failed", "FAILED"), artifact, ArtifactRow(id=ids["file"], project_id=project, **file),
    )  # fmt: skip
    return ids_shown | {"task_type": "text.size", "first": "1", "task": "greet", "event": "approval"}


def _route(endpoint_id: UUID, project: UUID) -> Route:
    return Route(endpoint_id=endpoint_id, project_id=project, model_name="m", served_name="m", state="running")
