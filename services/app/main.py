"""The app: its routes over a context, ready to be served. The assembly makes the context and adds what is beside it."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from services.app import error_docs, openapi
from services.app.audit import routes as audit
from services.app.clusters import outcomes as cluster_outcomes
from services.app.clusters import routes as clusters
from services.app.context import AppContext
from services.app.credentials import routes as credentials
from services.app.endpoints import model_files
from services.app.endpoints import outcomes as endpoint_outcomes
from services.app.endpoints import routes as endpoints
from services.app.flows import execution_routes as executions
from services.app.flows import file_routes as files
from services.app.flows import outcomes as flow_outcomes
from services.app.flows import routes as flows
from services.app.flows import uploads
from services.app.icons import routes as icons
from services.app.identity import routes as identity
from services.app.identity.authenticate import Authenticator
from services.app.jobs import routes as jobs
from services.app.jobs.outcome import Outcome
from services.app.models import outcomes as model_outcomes
from services.app.models import provider_routes as providers
from services.app.models import routes as models
from services.app.projects import routes as projects
from services.app.schedules import routes as schedules
from services.app.templates import routes as templates
from services.app.triggers import routes as triggers
from services.app.triggers.receiving import Limits
from services.app.webhooks import routes as webhooks
from services.app.webhooks.announcements import JobAnnouncer, announce_execution
from services.app.wizards import routes as wizards
from services.app.wizards.outcome import WorkflowHook
from services.app.workflow_servers import routes as workflow_servers
from shared.contracts.flows import RUN_FLOW
from shared.errors import Problem
from shared.http import guards, problems
from shared.http.sse import StreamSlots
from shared.jobs.ledger import Hook, JobView
from shared.telemetry.http import Seen

# Order matters where a path could be read two ways: wizards' own paths come before /models/{id}.
ROUTERS = (
    wizards.router,
    providers.router,
    models.router,
    clusters.router,
    endpoints.router,
    model_files.router,
    jobs.router,
    identity.router,
    projects.router,
    credentials.router,
    templates.router,
    webhooks.router,
    schedules.router,
    triggers.router,
    flows.router,
    files.router,
    executions.router,
    workflow_servers.router,
    icons.router,
    audit.router,
)


def hooks(context: AppContext) -> dict[str, Hook]:
    """What each kind of job means for our rows, and for the workflow that started it."""
    workflow, announcer = WorkflowHook(context), JobAnnouncer(context)
    resources: dict[str, Hook] = {
        "add_cloud_model": _nothing,
        "import_model": model_outcomes.ImportOutcome(context),
        "scan_model": model_outcomes.ScanOutcome(context),
        "register_cluster": cluster_outcomes.RegisterOutcome(context),
        "change_credentials": cluster_outcomes.CredentialsOutcome(context),
        "inspect_cluster": cluster_outcomes.InspectOutcome(context),
        "delete_cluster": cluster_outcomes.DeleteOutcome(context),
        "remove_orphans": _nothing,
        "deploy_model": endpoint_outcomes.DeployOutcome(context),
        "add_worker": endpoint_outcomes.ScaleOutcome(context),
        "remove_worker": endpoint_outcomes.ScaleOutcome(context),
        "stop_endpoint": endpoint_outcomes.ScaleOutcome(context),
        "start_endpoint": endpoint_outcomes.ScaleOutcome(context),
        "update_endpoint": endpoint_outcomes.UpdateOutcome(context),
        "delete_endpoint": endpoint_outcomes.RemoveOutcome(context),
    }
    found: dict[str, Hook] = {
        kind: Outcome(context.ledger, hook, workflow, announcer) for kind, hook in resources.items()
    }
    status = flow_outcomes.StatusAnnouncer(context, [announce_execution])
    found[RUN_FLOW] = Outcome(
        context.ledger, flow_outcomes.FlowOutcome(context), workflow, _one_after_another(status, announcer)
    )
    return found


def _one_after_another(*hooks: Hook) -> Hook:
    async def both(session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        for hook in hooks:
            await hook(session, job, spec)

    return both


async def _nothing(*_arguments: object) -> None:
    """There is no row that the job's end changes."""


Ready = Callable[[], Awaitable[list[str]]]


def create_app(context: AppContext, ready: Ready, dead: Callable[[], list[str]] = list) -> FastAPI:
    """`ready` names what is not ready, `dead` what must run and does not; empty when all is well."""
    app = FastAPI(
        title="Stepway", version="1", docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,  # a redirect may lose the body, and the key
    )  # fmt: skip
    app.state.context = context
    app.state.ready, app.state.dead = ready, dead
    app.state.authenticator = Authenticator(context)
    app.state.stream_slots = StreamSlots(per_key=context.settings.streams_per_key)
    app.state.trigger_limits = Limits()
    app.state.transfers = model_files.Transfers()
    problems.install(app)
    settings = context.settings
    guards.install(
        app,
        allowed_hosts=settings.answered_hosts,
        cors_origins=settings.cors_origins,
        body_limits=[
            (r"/endpoints/[^/]+/v1/", None),  # the gateway has its own
            (r"/flow/files$", settings.flow_max_file_bytes + uploads.ENVELOPE),
        ],
    )
    app.add_middleware(Seen)  # outermost
    app.include_router(_open)
    for router in ROUTERS:
        # Models' files are fetched by an endpoint's own pods, with tokens of their own: no part of the public API.
        app.include_router(router, include_in_schema=router is not model_files.router)
    return app


# Routes without authentication: they tell whether the service lives, and describe the API; nothing of anybody's. They are
# no closures over an application: FastAPI keeps the functions of routes for the life of the process, and what they hold.
_open = APIRouter(tags=["service"])


@_open.get("/healthz")
async def healthz(request: Request) -> dict[str, str]:
    """Answers 200 while the process lives, with or without its database; 503 when it should be started anew."""
    if ended := request.app.state.dead():
        raise Problem("unavailable", f"Not alive: {', '.join(ended)}.")
    return {"status": "ok"}


@_open.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """Answers 200 when the database and the objects are reached and jobs can run, else 503 with what is missing."""
    missing = await request.app.state.ready()
    if missing:
        raise Problem("unavailable", f"Not ready: {', '.join(missing)}.", headers={"Retry-After": "1"})
    return {"status": "ready"}


@_open.get("/docs/errors", response_class=HTMLResponse)
async def errors() -> HTMLResponse:
    """Explains every error code; the `type` of each problem points here."""
    return HTMLResponse(error_docs.page())


@_open.get("/openapi.json", include_in_schema=False)
async def description(request: Request) -> Response:
    app = request.app
    if app.openapi_schema is None:
        app.openapi_schema = openapi.describe(app)
    return Response(to_json(app.openapi_schema), media_type="application/json")
