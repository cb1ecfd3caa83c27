"""What the routes of all resources have in common: revisions, answers with their ETag, and saving under constraints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import Depends, Header, Request, Response
from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema, to_json
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app import references
from services.app.db_problems import problem_of_constraint
from services.app.identity.caller import Caller
from shared.errors import Problem
from shared.http.pages import PageQuery, page_of
from shared.http.strict_json import check_text

JSON = "application/json"


def _storable(text: str) -> str:
    if fault := check_text(text):
        raise ValueError(f"must not hold {fault}")
    return text


FilterText = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
"""A text of a query's filter; the database takes it as it is."""


@dataclass(frozen=True, slots=True)
class Among:
    """Bounds a text to some values that are listed elsewhere: `Annotated[str, Among(STATES)]`."""

    values: tuple[str, ...]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.values))


class Revised(Protocol):
    revision: Any  # an int; a mapped attribute on rows


Revisions = frozenset[str]
"""What a caller has read, as entity tags without their quotes."""


async def _expected(
    request: Request,
    if_match: Annotated[
        str | None, Header(description='The ETag that you read, `"3"`; a list of tags, or `*`.')
    ] = None,
) -> Revisions | None:
    tags = [tag.strip().removeprefix("W/") for tag in ",".join(request.headers.getlist("if-match")).split(",")]
    if if_match is None or "*" in tags:
        return None
    return frozenset(tag.strip('"') for tag in tags)


Expected = Annotated[Revisions | None, Depends(_expected)]
"""The revisions that the caller takes, by If-Match; None: whatever it is. A proxy may have made the tag a weak one."""


def check_revision(row: Revised, expected: Revisions | None) -> None:
    """Problem `revision_mismatch`, with the present ETag, when the caller has read another revision."""
    if expected is not None and str(row.revision) not in expected:
        raise Problem(
            "revision_mismatch",
            f"It is at revision {row.revision} now; read it again, then repeat the change.",
            headers={"ETag": f'"{row.revision}"'},
        )


def answer(view: Mapping[str, Any], status: int = 200) -> Response:
    """An object with its revision as ETag."""
    return Response(to_json(view), status, {"ETag": f'"{view["revision"]}"'}, JSON)


def created(view: Mapping[str, Any], collection: str) -> Response:
    """201 with the place of what was made: `collection` is a path such as `/projects`."""
    response = answer(view, 201)
    response.headers["Location"] = f"{collection}/{view['id']}"
    return response


def listed(data: Sequence[Mapping[str, Any]], query: PageQuery, *sortable: str) -> dict[str, Any]:
    """A page of a list that is short by its nature: of views, in their given order unless another is asked for.

    `search` looks through their ids and what they may be sorted by.
    """

    def text(one: Mapping[str, Any]) -> str:
        return " ".join(str(one.get(name)) for name in ("id", *sortable))

    return page_of(data, query, sortable, text).envelope(dict)


async def check_project(session: AsyncSession, caller: Caller, project_id: UUID | None) -> None:
    """Problem `reference_not_found` for a project in a body or a filter that is not there, or that they may not see."""
    if project_id is None:
        return
    found = references.named(await references.find(session, [("project", project_id)]), "project", str(project_id))
    if found is None or not found.may_be_named_by(caller):
        raise Problem("reference_not_found", "There is no such project.", param="project_id")


async def save(session: AsyncSession) -> None:
    """Send what has changed to the database; a violated constraint becomes the problem that it means."""
    try:
        await session.flush()
    except IntegrityError as error:
        raise problem_of_constraint(error) from error


def text_of(value: UUID | None) -> str | None:
    return None if value is None else str(value)
