"""Lists in pages: the query that a client sends, and keyset pagination over a SQLAlchemy select.

A repository declares its `Listing` once; a route takes `PageParams` and hands it on:

    MODELS = Listing(id=ModelRow.id, sortable={"created_at": ModelRow.created_at, "name": ModelRow.name},
                     default="-created_at", search=(ModelRow.name,))
    page = await paginate(session, select(ModelRow).where(…), MODELS, query)

Each page is one range of an index on (column, id), wherever the cursor stands. A null counts as the largest value, as
it does in PostgreSQL's own order; the rows with and without a value are two ranges, so that each stays one.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from fastapi import Depends, Query, params
from fastapi.dependencies.utils import get_flat_params
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Select, func, literal, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from shared.errors import Fault, Problem
from shared.http.problems import PARAM, query_problem
from shared.http.strict_json import check_text

T = TypeVar("T")
COUNT_LIMIT = 10_000
DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_FAULTS = 20
MAC_BYTES = 16


class _Key:
    """Signs cursors. Random until `use_key`: fine for one process that need not keep cursors over a restart."""

    value = secrets.token_bytes(32)


def use_key(key: bytes) -> None:
    """Signs cursors with `key`, the same in every replica, from now on."""
    _Key.value = hashlib.sha256(b"stepway cursor\0" + key).digest()


@dataclass(frozen=True, slots=True)
class PageQuery:
    """What a client asks of a list. `scope` binds a cursor to the path and the filters it was made for."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    search: str | None = None
    order_by: str | None = None
    scope: str = ""


async def page_query(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items in one page.")] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the page before.")] = None,
    search: Annotated[str | None, Query(max_length=200, description="A text that an item contains.")] = None,
    order_by: Annotated[str | None, Query(max_length=64, description="A field, or -field for descending.")] = None,
) -> PageQuery:
    """FastAPI dependency for `PageQuery`; routes name it as `PageParams`. A list refuses parameters it does not know."""
    _check_known(request)
    if search and (fault := check_text(search)):
        raise _wrong("search", f"must not hold {fault}")
    filters = sorted(pair for pair in request.query_params.multi_items() if pair[0] not in ("limit", "cursor"))
    return PageQuery(limit, cursor, search, order_by, json.dumps([request.url.path, filters]))


PageParams = Annotated[PageQuery, Depends(page_query)]


class ListOf(BaseModel, Generic[T]):
    """The answer of a list route, for `response_model`. `total_capped` is there, and true, only past 10,000."""

    object: Literal["list"] = "list"
    data: list[T]
    total: int
    total_capped: bool | None = Field(None, exclude_if=lambda value: value is None)
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """How one list may be sorted and searched. `sortable` maps public names to columns; `id` is unique and never null.

    For speed each sortable column wants an index on (column, id).
    """

    id: Any
    sortable: Mapping[str, Any]
    default: str
    search: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of rows (an entity each when the select has one column, else a tuple)."""

    rows: list[T]
    total: int
    total_capped: bool
    next_cursor: str | None

    def envelope(self, render: Callable[[T], Any]) -> dict[str, Any]:
        """The body of the answer, each row as `render` shows it."""
        body = {"object": "list", "data": [render(row) for row in self.rows], "total": self.total}
        if self.total_capped:
            body["total_capped"] = True
        return {**body, "next_cursor": self.next_cursor}


async def paginate(
    session: AsyncSession, statement: Select[*tuple[Any, ...]], listing: Listing, query: PageQuery
) -> Page[Any]:
    """The page of `statement` (its filters set, no order, no limit) that `query` asks for.

    Problems: `invalid_cursor` (400) for a cursor of another list, filter or order; 422 for an unknown `order_by`.
    """
    name, descending = _order(listing, query.order_by)
    column = listing.sortable[name]
    if query.search and listing.search:
        pattern = f"%{_escaped(query.search)}%"
        statement = statement.where(or_(*(found.ilike(pattern, escape="\\") for found in listing.search)))
    scope = f"{query.scope}\0{name}\0{descending}"
    after = None if query.cursor is None else _opened(query.cursor, scope)

    count = statement.with_only_columns(listing.id, maintain_column_froms=True).order_by(None).limit(COUNT_LIMIT + 1)
    total = (await session.execute(select(func.count()).select_from(count.subquery()))).scalar_one()

    wanted = query.limit + 1
    found: list[Any] = []
    ordered = statement.add_columns(column.label("page_value"), listing.id.label("page_id"))
    for condition in _ranges(column, listing.id, descending, after):
        if len(found) < wanted:
            part = ordered.where(*condition).order_by(*_ordering(column, listing.id, descending))
            found.extend((await session.execute(part.limit(wanted - len(found)))).all())
    rows = [row[0] if len(row) == 3 else tuple(row[:-2]) for row in found[: query.limit]]
    more = len(found) > query.limit
    next_cursor = _sealed(found[query.limit - 1][-2:], scope) if more else None
    return Page(rows, min(total, COUNT_LIMIT), total > COUNT_LIMIT, next_cursor)


def page_of(
    items: Sequence[Mapping[str, Any]],
    query: PageQuery,
    sortable: Collection[str],
    text: Callable[[Mapping[str, Any]], str],
) -> Page[Mapping[str, Any]]:
    """The page of a short list that is not in the database: of views with an `id`, given in the order of the default.

    `text` is what `search` looks through. Problems as of `paginate`.
    """
    wanted = (query.search or "").casefold()
    found = [one for one in items if wanted in text(one).casefold()]
    name, descending = _order_of(sortable, query.order_by) if query.order_by else ("", False)
    if name:
        found.sort(key=lambda one: (one.get(name) is None, one.get(name) or "", one["id"]), reverse=descending)
    scope = f"{query.scope}\0{name}\0{descending}"
    start = 0
    if query.cursor is not None:
        place, last = _opened(query.cursor, scope)  # when what stood there is gone, the next one does
        start = next((number for number, one in enumerate(found, 1) if one["id"] == last), place)
    end = start + query.limit
    more = len(found) > end
    cursor = _sealed((end - 1, found[end - 1]["id"]), scope) if more else None
    return Page(found[start:end], len(found), False, cursor)


def _order(listing: Listing, asked: str | None) -> tuple[str, bool]:
    return _order_of(listing.sortable, asked or listing.default)


def _order_of(sortable: Collection[str], order: str) -> tuple[str, bool]:
    name = order.removeprefix("-")
    if name not in sortable:
        raise _wrong("order_by", f"must be one of {', '.join(sorted(sortable))}, with - before it to descend")
    return name, order.startswith("-")


def _check_known(request: Request) -> None:
    """A misspelled filter would list everything: each parameter must be one that the route declares, and come once."""
    known = _parameters(request)
    given = [name for name, _ in request.query_params.multi_items()]
    faults = [
        Fault(name if PARAM.fullmatch(name) else None, "unknown_parameter", "is not a parameter of this list")
        for name in sorted(set(given) - known)
    ]
    faults += [Fault(name, "duplicate", "stands twice in the query") for name in sorted(known) if given.count(name) > 1]
    if faults:
        raise query_problem(faults[:MAX_FAULTS])


_KNOWN: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def _parameters(request: Request) -> frozenset[str]:
    endpoint = request.scope["endpoint"]
    if endpoint not in _KNOWN:
        declared = get_flat_params(request.scope["route"].dependant)
        _KNOWN[endpoint] = frozenset(one.alias for one in declared if isinstance(one.field_info, params.Query))
    return _KNOWN[endpoint]


def _wrong(param: str, message: str) -> Problem:
    return query_problem([Fault(param, "not_allowed", message)])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _ordering(column: Any, row_id: Any, descending: bool) -> tuple[Any, Any]:
    return (column.desc(), row_id.desc()) if descending else (column.asc(), row_id.asc())


def _ranges(
    column: Any, row_id: Any, descending: bool, after: tuple[Any, Any] | None
) -> list[list[ColumnElement[bool]]]:
    """The conditions of the queries that make one page, in their order: rows with a value, rows without."""

    def beyond(left: Any, right: Any) -> ColumnElement[bool]:
        condition: ColumnElement[bool] = left < right if descending else left > right
        return condition

    if not _nullable(column):
        if after is None:
            return [[]]
        return [[beyond(tuple_(column, row_id), _bound(column, row_id, after))]]
    filled: list[ColumnElement[bool]] = [column.is_not(None)]
    empty: list[ColumnElement[bool]] = [column.is_(None)]
    if after is None:
        return [empty, filled] if descending else [filled, empty]
    value, last_id = after
    if value is None:
        empty.append(beyond(row_id, literal(last_id, row_id.type)))
        return [empty, filled] if descending else [empty]
    filled.append(beyond(tuple_(column, row_id), _bound(column, row_id, after)))
    return [filled] if descending else [filled, empty]


def _bound(column: Any, row_id: Any, after: tuple[Any, Any]) -> Any:
    return tuple_(literal(after[0], column.type), literal(after[1], row_id.type))


def _nullable(column: Any) -> bool:
    """True for an expression too: only a table's own column can say that it never is null."""
    return bool(getattr(column, "nullable", getattr(getattr(column, "expression", None), "nullable", True)))


def _same(value: Any) -> Any:
    return value


_TO_TEXT: dict[type, tuple[str, Callable[[Any], Any]]] = {
    type(None): ("n", _same),
    bool: ("b", _same),
    int: ("i", _same),
    float: ("f", _same),
    str: ("s", _same),
    UUID: ("u", str),
    datetime: ("t", datetime.isoformat),
    date: ("d", date.isoformat),
    Decimal: ("m", str),
}
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "u": UUID,
    "t": datetime.fromisoformat,
    "d": date.fromisoformat,
    "m": Decimal,
}


def _sealed(position: Sequence[Any], scope: str) -> str:
    packed = []
    for value in position:
        tag, pack = _TO_TEXT[type(value)]
        packed.append([tag, pack(value)])
    text = json.dumps(packed, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mac(text, scope) + text).rstrip(b"=").decode()


def _opened(cursor: str, scope: str) -> tuple[Any, Any]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _foreign() from None
    mac, text = raw[:MAC_BYTES], raw[MAC_BYTES:]
    # What follows was written by `_sealed`: nothing else has the key.
    if not hmac.compare_digest(mac, _mac(text, scope)):
        raise _foreign()
    value, row_id = (_FROM_TEXT.get(tag, _same)(packed) for tag, packed in json.loads(text))
    return value, row_id


def _mac(text: bytes, scope: str) -> bytes:
    return hmac.digest(_Key.value, hashlib.sha256(scope.encode()).digest() + text, "sha256")[:MAC_BYTES]


def _foreign() -> Problem:
    return Problem("invalid_cursor", "The cursor does not belong to this list with these filters.", param="cursor")
