"""The routes of wizards and workflows. Each wizard's route is made from its entry in the registry."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.resources import Among, Expected, answer, listed
from services.app.streams import open_stream
from services.app.wizards import forms, repository, service, steps
from services.app.wizards.contract import Visit, Wizard
from services.app.wizards.descriptor import describe
from services.app.wizards.preview import preview
from services.app.wizards.registry import WIZARDS
from services.app.wizards.tables import WORKFLOW_STATES
from shared.contracts.previews import DeployPreview
from shared.errors import Problem
from shared.http.bodies import READ_JSON, Form, read_form, read_json
from shared.http.pages import PageParams
from shared.http.sse import Batch, last_event_id

router = APIRouter(tags=["wizards"])
JSON = "application/json"


def _step_route(wizard: Wizard) -> Callable[..., Awaitable[Response]]:
    async def take_step(
        request: Request,
        context: Context,
        caller: Authenticated,
        once: Once,
        expected: Expected,
    ) -> Response:
        form = await _form(wizard, request)

        async def work() -> Response:
            body = forms.read(wizard, form)
            return answer(await steps.take_step(context, caller, wizard, body, expected))

        return await once.run(form.fingerprint(), work)

    take_step.__name__ = wizard.type
    take_step.__doc__ = wizard.description
    return take_step


async def _form(wizard: Wizard, request: Request) -> Form:
    """The body in JSON form: a form's texts are read as what they spell."""
    if wizard.encoding == "json":
        return Form(await read_json(request))
    form = await read_form(request)
    return form if READ_JSON in request.scope else forms.typed(wizard, form)


def _openapi(wizard: Wizard) -> dict[str, Any]:
    inline = _inline(forms.patch_model(wizard).model_json_schema())
    control = _inline(forms.Control.model_json_schema())
    properties = {**control["properties"], **inline.get("properties", {})}
    for name in wizard.files:
        properties[name] = {"type": "string", "format": "binary"}
    body = {"type": "object", "properties": properties, "required": ["step_number"], "additionalProperties": False}
    content = {JSON: {"schema": body}}
    if wizard.encoding == "multipart":
        content["multipart/form-data"] = {"schema": body}
    return {"requestBody": {"required": True, "content": content}}


def _inline(schema: Any, definitions: dict[str, Any] | None = None) -> Any:
    """A schema without `$ref`, for none of ours is recursive."""
    if isinstance(schema, list):
        return [_inline(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", definitions) or {}
    if "$ref" in schema:
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        return {**_inline(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions), **rest}
    return {name: _inline(value, definitions) for name, value in schema.items() if name != "$defs"}


for one in WIZARDS.values():
    router.add_api_route(
        one.path, _step_route(one), methods=["POST"], summary=one.title, openapi_extra=_openapi(one), operation_id=one.type,
    )  # fmt: skip


@router.get("/wizards")
async def list_wizards(_caller: Authenticated, query: PageParams) -> Response:
    """Describes all wizards: their steps, schemas, options and what the trigger requires."""
    data = [describe(wizard) for wizard in WIZARDS.values()]
    return Response(to_json(listed(data, query, "type", "title")), media_type=JSON)


@router.get("/wizards/{type}")
async def show_wizard(type: str, _caller: Authenticated) -> Response:
    """Describes one wizard."""
    if type not in WIZARDS:
        raise Problem("not_found", "There is no such wizard.")
    return Response(to_json(describe(WIZARDS[type])), media_type=JSON)


@router.get("/workflows")
async def list_workflows(
    context: Context,
    session: Session,
    caller: Authenticated,
    query: PageParams,
    type: Annotated[Annotated[str, Among(tuple(WIZARDS))] | None, Query()] = None,
    status: Annotated[Annotated[str, Among(WORKFLOW_STATES)] | None, Query()] = None,
    owner_id: Annotated[UUID | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
) -> Response:
    """Lists workflows, finished ones too: one's own; all for operators and admins."""
    filters = {"type": type, "status": status, "owner_id": owner_id, "project_id": project_id}
    page = await repository.page(session, caller, filters, query)
    visit = Visit(context, session, caller)
    data = [await service.render(visit, workflow) for workflow in page.rows]
    by_id = {row.id: shown for row, shown in zip(page.rows, data, strict=True)}
    return Response(to_json(page.envelope(lambda row: by_id[row.id])), media_type=JSON)


@router.get("/workflows/{workflow_id}")
async def show_workflow(workflow_id: UUID, context: Context, session: Session, caller: Authenticated) -> Response:
    """Shows a workflow: the same as a step's answer."""
    return answer(await service.show(Visit(context, session, caller), workflow_id))


@router.post("/workflows/{workflow_id}/cancel")
async def cancel_workflow(
    workflow_id: UUID, context: Context, caller: Authenticated, once: Once, expected: Expected
) -> Response:
    """Cancels a draft, or stops and undoes the job of a triggered workflow. May be repeated."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            return answer(await service.cancel(Visit(context, session, caller), workflow_id, expected))

    return await once.run("", work)


@router.post("/workflows/{workflow_id}/retry")
async def retry_workflow(
    workflow_id: UUID, context: Context, caller: Authenticated, once: Once, expected: Expected
) -> Response:
    """Runs the job of a failed workflow again from its failed step."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            return answer(await service.retry(Visit(context, session, caller), workflow_id, expected))

    return await once.run("", work)


@router.post("/workflows/{workflow_id}/preview")
async def preview_workflow(workflow_id: UUID, context: Context, caller: Authenticated) -> DeployPreview:
    """Shows what the trigger would deploy: workers, objects, what they need, whether the cluster has it. Makes nothing.

    Refused as the trigger would be. What the cluster itself has against it is among `problems`.
    """
    return await preview(context, caller, workflow_id)


@router.delete("/workflows/{workflow_id}", status_code=204)
async def delete_workflow(
    workflow_id: UUID, context: Context, session: Session, caller: Authenticated, expected: Expected
) -> None:
    """Deletes a draft."""
    await service.delete(Visit(context, session, caller), workflow_id, expected)


@router.get("/workflows/{workflow_id}/events")
async def follow_workflow(request: Request, workflow_id: UUID, context: Context, caller: Authenticated) -> Response:
    """Server-sent events of a workflow, its jobs and their steps, in one sequence; resumes after Last-Event-ID."""
    seen = last_event_id(request)
    async with context.database.transaction() as session:
        await service.readable(Visit(context, session, caller), workflow_id)
    after = await context.feeds.start_after("topic", workflow_id, seen)
    async with context.database.transaction() as session:
        if await service.has_ended(session, workflow_id, after):
            return Response(status_code=204)

    async def batches() -> AsyncIterator[Batch]:
        async for events in context.feeds.follow("topic", workflow_id, after):
            yield b"".join(event.encoded for event in events)
            if any(event.type == "end" for event in events) and await nothing_after(events[-1].number):
                return

    async def nothing_after(number: int) -> bool:
        async with context.database.transaction() as session:
            return await service.has_ended(session, workflow_id, number)

    return open_stream(request, caller, batches())
