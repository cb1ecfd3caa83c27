"""Files that are uploaded into a project for its flows: kept, found, deleted; and the files that inputs name.

`uploads` takes in their bytes. What an execution's inputs say of a file counts for nothing but its id.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import definitions, history, views
from services.app.flows.tables import LIVE, ArtifactRow, ExecutionRow, FileUseRow
from services.app.flows.uploads import Received
from services.app.identity.caller import Caller
from services.app.models import holdings
from services.app.projects import repository as projects
from services.app.resources import check_project, save
from shared.errors import Problem
from shared.flows.definition import Flow
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.faults import Fault, member
from shared.http.pages import Listing, PageQuery, paginate
from shared.objects.store import blob_key

FILES = Listing(
    id=ArtifactRow.id, sortable={"created_at": ArtifactRow.created_at}, default="-created_at", search=[ArtifactRow.name]
)  # fmt: skip

_BATCH = 1000

_FORGET = text("""
    DELETE FROM flow.artifact WHERE id IN (
        SELECT a.id FROM flow.artifact a
         WHERE a.project_id IS NOT NULL AND a.created_at < clock_timestamp() - make_interval(days => :days)
           AND (a.used_at IS NULL OR a.used_at < clock_timestamp() - make_interval(days => :days))
           AND NOT EXISTS (SELECT 1 FROM flow.file_use u WHERE u.artifact_id = a.id)
           AND NOT EXISTS (SELECT 1 FROM flow.schedule s JOIN flow.flow f ON f.id = s.flow_id
                            WHERE f.project_id = a.project_id AND f.deleted_at IS NULL
                              AND strpos(lower(s.inputs::text), a.id::text) > 0)
         LIMIT :batch FOR UPDATE SKIP LOCKED)
    RETURNING id""")


async def keep(context: AppContext, caller: Caller, project_id: UUID, file: Received) -> ArtifactRow:
    """Store what was received, and name it.

    Problems: `too_many_files`; `unavailable` where its bytes were freed in between. Nothing is left of it then.
    """
    key = blob_key(file.sha256)
    await context.objects.adopt(file.path, file.sha256)
    try:
        return await _named(context, caller, project_id, file, key)
    except Problem:
        await holdings.free(context, [key])
        raise


async def _named(context: AppContext, caller: Caller, project_id: UUID, file: Received, key: str) -> ArtifactRow:
    async with context.database.transaction() as session:
        await _check_room(context, session, project_id, file.size)
        await holdings.lock(session, [key])
        if not await context.objects.exists(key):  # from here on nothing frees it (see `holdings`)
            raise Problem("unavailable", "The file could not be kept; send it again.", headers={"Retry-After": "1"})
        row = ArtifactRow(
            id=uuid4(), project_id=project_id, name=file.name, media_type=file.media_type, size=file.size,
            sha256=file.sha256,
        )  # fmt: skip
        session.add(row)
        await save(session)
        await audit.record(
            session, caller, "file.upload", "file", row.id, project_id=project_id, name=row.name, size=row.size
        )
    return row


async def _check_room(context: AppContext, session: AsyncSession, project_id: UUID, size: int) -> None:
    """Under the project's lock, so that two cannot both take the last place. Equal bytes count for each file."""
    if await projects.get(session, project_id, lock=True) is None:
        raise Problem("reference_not_found", "There is no such project any more.", param="project_id")
    settings = context.settings
    held = select(func.count(), func.coalesce(func.sum(ArtifactRow.size), 0)).where(
        ArtifactRow.project_id == project_id
    )
    count, used = (await session.execute(held)).one()
    left = settings.flow_file_bytes_per_project - int(used)
    if count >= settings.flow_files_per_project:
        told = f"The project may keep {settings.flow_files_per_project} uploaded files, and does; delete some."
        raise Problem("too_many_files", told)
    if size > left:
        told = (
            f"Uploaded files of the project may have {settings.flow_file_bytes_per_project} bytes together, of which "
            f"{max(left, 0)} are left; this one has {size}. Delete some."
        )
        raise Problem("too_many_files", told)


async def page(session: AsyncSession, caller: Caller, project_id: UUID | None, query: PageQuery) -> dict[str, Any]:
    await check_project(session, caller, project_id)
    statement: Select[Any] = select(ArtifactRow).where(
        ArtifactRow.project_id.is_not(None), caller.visible(ArtifactRow.project_id)
    )
    if project_id is not None:
        statement = statement.where(ArtifactRow.project_id == project_id)
    return (await paginate(session, statement, FILES, query)).envelope(views.file_summary)


async def found(session: AsyncSession, caller: Caller, file_id: UUID, *, lock: bool = False) -> ArtifactRow:
    """An uploaded file. Problem `not_found`."""
    statement = select(ArtifactRow).where(ArtifactRow.id == file_id, ArtifactRow.project_id.is_not(None))
    row = (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()
    if row is None:
        raise Problem("not_found", "There is no such file.")
    caller.check_sees(row.project_id, "file")
    return row


async def remove(session: AsyncSession, caller: Caller, file_id: UUID) -> str:
    """Forget an uploaded file; the key of the object that may be free once this is committed. Problem `in_use`."""
    row = await found(session, caller, file_id, lock=True)  # nothing starts with it from here on
    caller.check_works_in(row.project_id, "file")
    of_it = FileUseRow.artifact_id == file_id
    living = select(ExecutionRow.slug).join(FileUseRow, FileUseRow.execution_id == ExecutionRow.id)
    using = await session.scalar(living.where(of_it, ExecutionRow.status.in_(LIVE)).limit(1))
    if using is not None:
        raise Problem("in_use", f"The execution {using}, which has not ended, was given this file; cancel it first.")
    await session.execute(delete(FileUseRow).where(of_it))
    await session.execute(delete(ArtifactRow).where(ArtifactRow.id == file_id))
    await audit.record(session, caller, "file.delete", "file", file_id, project_id=row.project_id, name=row.name)
    return blob_key(row.sha256)


async def forget(context: AppContext) -> int:
    """Forget uploads that no execution was given for so many days, and that no known execution names, nor a schedule.

    How many went. Their bytes are freed as all that nothing names.
    """
    gone, values = 0, {"days": context.settings.flow_files_kept_days, "batch": _BATCH}
    while True:
        async with context.database.statement() as connection:
            count = len((await connection.execute(_FORGET, values)).all())
        gone += count
        if count == 0:
            return gone


# ---- files in the inputs of an execution


async def checked(
    session: AsyncSession, flow: Flow, inputs: dict[str, Any], project_id: UUID, dialect: DialectName
) -> tuple[dict[str, Any], list[UUID]]:
    """The inputs, each file in them as its row has it, however deep; and the uploads among all files that they name.

    None of these goes before the transaction has ended. Problem `flow_input_invalid` for files that are not the project's.
    """
    named = views.files_in(inputs)
    rows = await history.artifacts(session, named, project_id, hold=True) if named else {}
    word, faults = DIALECTS[dialect].input, list[Fault]()
    filled = dict(inputs)
    for one in flow.inputs:
        value, path = inputs.get(one.name), member(word, one.name)
        if one.type == "file" and value is not None:
            filled[one.name] = _as_stored(value, path, rows, faults)
        else:
            filled[one.name] = _with_stored(value, path, rows, faults)
    if faults:
        raise definitions.problem_of("flow_input_invalid", faults)
    definitions.check_size(filled, dialect)
    return filled, [row.id for row in rows.values() if row.project_id is not None]


def _as_stored(value: dict[str, Any], path: str, rows: dict[UUID, ArtifactRow], faults: list[Fault]) -> dict[str, Any]:
    file_id = views.artifact_id(value)
    row = None if file_id is None else rows.get(file_id)
    if row is None:
        faults.append(Fault(path, "reference_not_found", "There is no such file in the project, or not any more."))
        return {}
    return views.file_value(row)


def _with_stored(value: Any, path: str, rows: dict[UUID, ArtifactRow], faults: list[Fault]) -> Any:
    """Of plain JSON. What has other members than a file has may be anything: it is a file where it names one of ours."""
    if isinstance(value, list):
        return [_with_stored(one, f"{path}[{index}]", rows, faults) for index, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    file_id = views.artifact_id(value)
    if file_id is not None and value.keys() <= views.FILE_MEMBERS:
        spilled = {name: one for name, one in value.items() if name == "spilled"}  # of a parent: a large value
        return {**_as_stored(value, path, rows, faults), **spilled}
    filled = {name: _with_stored(one, member(path, name), rows, faults) for name, one in value.items()}
    row = None if file_id is None else rows.get(file_id)
    return filled if row is None else {**filled, **views.file_value(row)}


async def note_use(session: AsyncSession, execution_id: UUID, uploads: Iterable[UUID]) -> None:
    """That the execution was given these files, which `checked` has told."""
    rows = [{"execution_id": execution_id, "artifact_id": one} for one in uploads]
    if not rows:
        return
    await session.execute(insert(FileUseRow), rows)
    # To the hour, and passing over those that another start is just writing to: starts do not wait for each other.
    stale = (
        select(ArtifactRow.id)
        .where(
            ArtifactRow.id.in_([row["artifact_id"] for row in rows]),
            text("(used_at IS NULL OR used_at < clock_timestamp() - interval '1 hour')"),
        )
        .with_for_update(key_share=True, skip_locked=True)
    )
    noted = update(ArtifactRow).where(ArtifactRow.id.in_(stale)).values(used_at=text("clock_timestamp()"))
    await session.execute(noted.execution_options(synchronize_session=False))
