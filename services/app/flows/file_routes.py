"""The routes of files that are uploaded for flows. What executions make is downloaded at `execution_routes`."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.flows import files, service, uploads, views
from services.app.flows.downloads import download
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.models import holdings
from services.app.streams import check_still_valid, hold_slot
from shared.http.bodies import fingerprint
from shared.http.pages import PageParams

router = APIRouter(prefix="/flow", tags=["files"])
JSON = "application/json"
ProjectId = Annotated[UUID | None, Query()]
FileName = Annotated[
    str | None, Query(max_length=255, description="Of a file that is not in a form; in place of the form's, else.")
]


@router.post("/files", status_code=201, openapi_extra=uploads.DESCRIBED)
async def upload_file(
    request: Request, context: Context, caller: Authenticated, once: Once, project_id: ProjectId = None,
    name: FileName = None,
) -> Response:  # fmt: skip
    """Takes in a file, as it is or as the part `file` of a form. The answer may be given as it is as an input of type file.

    Its project is chosen as for a workflow. It stays for 30 days after it was last used.
    """
    async with context.database.transaction() as session:
        caller.require("member")
        home = await service.home_of(session, caller, project_id)
    limit = context.settings.flow_max_file_bytes
    with hold_slot(request, caller):
        async with uploads.received(request, context.objects, limit, name) as file:
            await check_still_valid(request, caller)  # the bytes may have taken their time

            async def work() -> Response:
                row = await files.keep(context, caller, home, file)
                return Response(to_json(views.uploaded(row)), 201, {"Location": f"/flow/files/{row.id}"}, JSON)

            content = {"project_id": str(home), "name": file.name, "media_type": file.media_type}
            return await once.run(fingerprint(content, {"file": file.sha256}), work)


@router.get("/files")
async def list_files(
    session: Session, caller: Authenticated, query: PageParams, project_id: ProjectId = None
) -> dict[str, Any]:
    """Lists the files that were uploaded into a project, or into all of one's projects, the newest first."""
    return await files.page(session, caller, project_id, query)


@router.get("/files/{file_id}")
async def show_file(file_id: UUID, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Shows an uploaded file, as it may be given as an input."""
    return views.file_summary(await files.found(session, caller, file_id))


@router.get("/files/{file_id}/content", response_class=Response)
async def download_file(request: Request, file_id: UUID, context: Context, caller: Authenticated) -> Response:
    """Sends an uploaded file, or a `Range` of it."""
    async with context.database.transaction() as session:
        row = await files.found(session, caller, file_id)
    return await download(request, context, caller, row)


@router.delete("/files/{file_id}", status_code=204)
async def delete_file(file_id: UUID, context: Context, caller: Authenticated) -> None:
    """Deletes an uploaded file; 409 while an execution runs that was given it."""
    async with context.database.transaction() as session:
        blob = await files.remove(session, caller, file_id)
    await holdings.free(context, [blob])
