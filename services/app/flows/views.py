"""How flows, versions, executions and task types look on the wire, in the dialect that is asked for."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from services.app.flows import slugs
from services.app.flows.history import Listed
from services.app.flows.tables import ArtifactRow, ExecutionRow, FlowRow, VersionRow
from services.app.resources import text_of
from shared.clock import iso
from shared.flows.definition import Flow
from shared.flows.dialects import DIALECTS, write
from shared.flows.dialects.words import DialectName
from stepway.tasks import Field, TaskType

Json = Any


def flow_summary(flow: FlowRow) -> dict[str, Any]:
    return {
        "object": "workflow",
        "workflow_id": flow.slug,
        "workflow_version": flow.version,
        "name": flow.name,
        "description": flow.description,
        "dialect": flow.dialect,
        "project_id": str(flow.project_id),
        "created_by": text_of(flow.created_by),
        "created_at": iso(flow.created_at),
        "updated_at": iso(flow.updated_at),
        "revision": flow.revision,
    }


def flow_view(flow: FlowRow, version: VersionRow, dialect: DialectName) -> dict[str, Any]:
    """`definition` is what may be sent again."""
    return {**flow_summary(flow), "dialect": dialect, "definition": _definition(version, dialect)}


def version_summary(flow: FlowRow, version: VersionRow) -> dict[str, Any]:
    return {
        "object": "workflow_version",
        "workflow_id": flow.slug,
        "workflow_version": version.number,
        "dialect": version.dialect,
        "created_by": text_of(version.created_by),
        "created_at": iso(version.created_at),
    }


def version_view(flow: FlowRow, version: VersionRow, dialect: DialectName) -> dict[str, Any]:
    return {**version_summary(flow, version), "dialect": dialect, "definition": _definition(version, dialect)}


def _definition(version: VersionRow, dialect: DialectName) -> dict[str, Any]:
    return write(Flow.model_validate(version.definition), dialect)


# ---- executions


def id_name(dialect: DialectName) -> str:
    return "workflow_execution_id" if dialect == "tasks" else "execution_id"


def started(flow: FlowRow, execution: ExecutionRow, dialect: DialectName) -> dict[str, Any]:
    """The answer to a start."""
    workflow = {"workflow_id": flow.slug, "workflow_version": execution.version}
    own = {id_name(dialect): slugs.spelled(execution.slug, dialect)}
    return {**own, **workflow, "status": "PENDING"} if dialect == "tasks" else {**workflow, **own, "status": "PENDING"}


def listed(one: Listed, dialect: DialectName | None, *, whole: bool) -> dict[str, Any]:
    """A line of a list; `whole`: of a list over several flows. Without a dialect, in the flow's own."""
    spoken: DialectName = dialect or one.flow.dialect  # type: ignore[assignment]  # a text column
    execution = one.execution
    more = {
        "workflow_id": one.flow.slug, "workflow_version": execution.version, "workflow_name": one.flow.name,
        "project_id": str(execution.project_id), "trigger": execution.trigger,
    }  # fmt: skip
    return {
        id_name(spoken): slugs.spelled(execution.slug, spoken),
        "status": execution.status,
        "created_at": iso(execution.created_at),
        "started_at": iso(one.started_at),
        "completed_at": iso(one.ended_at),
        **(more if whole else {}),
    }


def execution_view(
    flow: FlowRow,
    execution: ExecutionRow,
    job: Mapping[str, Any],
    status: str,
    tasks: Iterable[tuple[str, str]],
    values: Mapping[str, Json],
    dialect: DialectName,
) -> dict[str, Any]:
    """`values`: what may be seen of `inputs` and `outputs`. The outputs are null until the end."""
    words = DIALECTS[dialect]
    return {
        id_name(dialect): slugs.spelled(execution.slug, dialect),
        "workflow_id": flow.slug,
        "workflow_version": execution.version,
        "status": status,
        "tasks": [{words.task_name: name, "status": one} for name, one in tasks],
        words.input: values["inputs"],
        words.output: values["outputs"],
        "error": job["error"],
        "trigger": execution.trigger,
        "attempt": job["attempt"],
        "percent": job["percent"],
        "created_at": iso(execution.created_at),
        "started_at": job["started_at"],
        "completed_at": job["ended_at"],
        "project_id": str(execution.project_id),
        "job_id": str(execution.id),
    }


# ---- task types


def task_type_view(kind: TaskType) -> dict[str, Any]:
    return {
        "object": "task_type",
        "id": kind.name,
        "name": kind.name,
        "title": kind.title,
        "description": kind.description,
        "inputs": [_field(one) for one in kind.inputs],
        "outputs": [_field(one) for one in kind.outputs],
        "one_of": [list(group) for group in kind.one_of],
        "timeout": kind.timeout,
        "attempts": kind.attempts,
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": field.type,
        "required": field.required,
        "default": field.default,
        "description": field.description,
        "example": field.example,
        "choices": list(field.choices),
        "secret": field.secret,
    }


# ---- files

FILE_MEMBERS = frozenset(
    ("artifact_id", "name", "media_type", "size", "sha256", "href", "spilled", "project_id", "created_at", "used_at")
)
Places = Mapping[UUID, tuple[str, str] | None]


def files_in(value: Json) -> set[UUID]:
    """The ids of all files in plain values."""
    found: set[UUID] = set()
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            if (file_id := artifact_id(one)) is not None:
                found.add(file_id)
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return found


def with_links(value: Json, places: Places) -> Json:
    """The same values, each file that is known with `href`, where it is downloaded."""
    if isinstance(value, list):
        return [with_links(one, places) for one in value]
    if not isinstance(value, dict):
        return value
    linked = {name: with_links(one, places) for name, one in value.items()}
    file_id = artifact_id(value)
    if file_id is not None and file_id in places:
        linked["href"] = _href(file_id, places[file_id])
    return linked


def _href(file_id: UUID, place: tuple[str, str] | None) -> str:
    if place is None:
        return f"/flow/files/{file_id}/content"
    return f"/flow/workflows/{place[0]}/executions/{place[1]}/artifacts/{file_id}"


def file_value(file: ArtifactRow) -> dict[str, Any]:
    """What stands for the file in inputs."""
    return {
        "artifact_id": str(file.id), "name": file.name, "media_type": file.media_type, "size": file.size,
        "sha256": file.sha256,
    }  # fmt: skip


def uploaded(file: ArtifactRow) -> dict[str, Any]:
    """The value of an uploaded file, with the place of its bytes."""
    return {**file_value(file), "href": _href(file.id, None)}


def file_summary(file: ArtifactRow) -> dict[str, Any]:
    return {
        **uploaded(file), "project_id": text_of(file.project_id), "created_at": iso(file.created_at),
        "used_at": iso(file.used_at),
    }  # fmt: skip


def artifact_id(value: dict[str, Json]) -> UUID | None:
    """The file that a value names, if it names one."""
    text = value.get("artifact_id")
    try:
        return UUID(text) if isinstance(text, str) and len(text) == 36 else None
    except ValueError:
        return None
