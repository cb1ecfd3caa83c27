"""What the routes of all resources have in common: revisions, answers with their ETag, and saving under constraints."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import Depends, Header, Response
from pydantic import AfterValidator, Field
from pydantic_core import to_json
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.db_problems import problem_of_constraint
from services.app.precondition import revision_of
from shared.errors import Problem
from shared.http.strict_json import check_text

JSON = "application/json"


def _storable(text: str) -> str:
    if fault := check_text(text):
        raise ValueError(f"must not hold {fault}")
    return text


FilterText = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
"""A text of a query's filter; the database takes it as it is."""


class Revised(Protocol):
    revision: Any  # an int; a mapped attribute on rows


async def _expected(if_match: Annotated[str | None, Header()] = None) -> int | None:
    return revision_of(if_match)


Expected = Annotated[int | None, Depends(_expected)]
"""The revision that the caller has read, by If-Match; None: whatever it is."""


def check_revision(row: Revised, expected: int | None) -> None:
    """Problem `revision_mismatch` when the caller has read another revision."""
    if expected is not None and expected != row.revision:
        raise Problem(
            "revision_mismatch", f"It is at revision {row.revision} now.", headers={"ETag": f'"{row.revision}"'}
        )


def answer(view: Mapping[str, Any], status: int = 200) -> Response:
    """An object with its revision as ETag."""
    return Response(to_json(view), status, {"ETag": f'"{view["revision"]}"'}, JSON)


def created(view: Mapping[str, Any], collection: str) -> Response:
    """201 with the place of what was made: `collection` is a path such as `/projects`."""
    response = answer(view, 201)
    response.headers["Location"] = f"{collection}/{view['id']}"
    return response


def whole(data: list[dict[str, Any]]) -> dict[str, Any]:
    """A list that is short by its nature, on one page."""
    return {"object": "list", "data": data, "total": len(data), "next_cursor": None}


async def save(session: AsyncSession) -> None:
    """Send what has changed to the database; a violated constraint becomes the problem that it means."""
    try:
        await session.flush()
    except IntegrityError as error:
        raise problem_of_constraint(error) from error


def text_of(value: UUID | None) -> str | None:
    return None if value is None else str(value)
