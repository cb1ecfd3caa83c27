"""Keyset pages over a real PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import DateTime, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.db.engine import driver_url
from shared.errors import Problem
from shared.http import pages, problems
from shared.http.pages import Listing, ListOf, Page, PageParams, PageQuery, paginate
from tests.shared.http.conftest import client_of


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "page_rows"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    size: Mapped[int]
    done_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), index=True)


ROWS = Listing(
    id=Row.id,
    sortable={"name": Row.name, "size": Row.size, "done_at": Row.done_at, "lower": func.lower(Row.name)},
    default="name",
    search=(Row.name,),
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def _row(number: int) -> dict[str, Any]:
    done_at = None if number % 3 == 0 else START + timedelta(microseconds=number // 4)
    return {"id": uuid4(), "name": f"row {number % 7}", "size": number % 5, "done_at": done_at}


@pytest.fixture(scope="module")
async def engine(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(driver_url(postgres_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Row), [_row(number) for number in range(100)])
    yield engine
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def _all_pages(session: AsyncSession, order_by: str, limit: int, **where: Any) -> list[Row]:
    rows: list[Row] = []
    cursor = None
    while True:
        query = PageQuery(limit=limit, cursor=cursor, order_by=order_by)
        page: Page[Row] = await paginate(session, select(Row).filter_by(**where), ROWS, query)
        assert page.total == (100 if not where else page.total)
        rows.extend(page.rows)
        cursor = page.next_cursor
        if cursor is None:
            return rows
        assert len(page.rows) == limit


@pytest.mark.parametrize("limit", [1, 7, 33, 100])
@pytest.mark.parametrize("order_by", ["name", "-name", "size", "-size", "done_at", "-done_at", "lower", "-lower"])
async def test_pages_join_into_the_whole_list(session: AsyncSession, order_by: str, limit: int) -> None:
    column = ROWS.sortable[order_by.removeprefix("-")]
    order = [column.desc(), Row.id.desc()] if order_by.startswith("-") else [column, Row.id]
    whole = (await session.scalars(select(Row).order_by(*order))).all()
    paged = await _all_pages(session, order_by, limit)
    assert [row.id for row in paged] == [row.id for row in whole]


async def test_filters_and_counts(session: AsyncSession) -> None:
    rows = await _all_pages(session, "-size", 4, name="row 3")
    assert len(rows) == 14
    assert {row.name for row in rows} == {"row 3"}


async def test_an_empty_list(session: AsyncSession) -> None:
    page: Page[Row] = await paginate(session, select(Row).where(Row.size == 99), ROWS, PageQuery())
    assert page.envelope(lambda row: row.name) == {"object": "list", "data": [], "total": 0, "next_cursor": None}


async def test_a_select_of_columns(session: AsyncSession) -> None:
    page: Page[Any] = await paginate(session, select(Row.name, Row.size), ROWS, PageQuery(limit=1))
    assert page.envelope(lambda row: row[0])["data"] == ["row 0"]


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "a" * 60, "\ud800", "é", "A" * 1999, "e30="])
async def test_a_made_up_cursor(session: AsyncSession, cursor: str) -> None:
    with pytest.raises(Problem) as caught:
        await paginate(session, select(Row), ROWS, PageQuery(cursor=cursor))
    assert (caught.value.code, caught.value.status) == ("invalid_cursor", 400)


async def test_a_cursor_belongs_to_its_list_filter_order_and_key(session: AsyncSession) -> None:
    async def page(**given: Any) -> Page[Row]:
        return await paginate(session, select(Row), ROWS, PageQuery(limit=5, **given))

    cursor = (await page(scope="a", order_by="name")).next_cursor
    assert len((await page(scope="a", order_by="name", cursor=cursor)).rows) == 5
    for other in (
        {"scope": "b", "order_by": "name"},
        {"scope": "a", "order_by": "-name"},
        {"scope": "a", "order_by": "size"},
    ):
        with pytest.raises(Problem, match="invalid_cursor"):
            await page(cursor=cursor, **other)
    pages.use_key(b"another key")
    with pytest.raises(Problem, match="invalid_cursor"):
        await page(scope="a", order_by="name", cursor=cursor)


@pytest.mark.parametrize("order_by", ["id; drop table page_rows", "--name", "-", "Name", "done_at desc"])
async def test_an_unknown_order(session: AsyncSession, order_by: str) -> None:
    with pytest.raises(Problem) as caught:
        await paginate(session, select(Row), ROWS, PageQuery(order_by=order_by))
    assert caught.value.status == 400
    assert order_by not in str(caught.value.body()["detail"]) or order_by == "-"


async def test_search_takes_every_character_as_it_is(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        names = ["100%", "100x", "a_b", "axb", "c\\d", "ROW"]
        await session.execute(insert(Row), [{**_row(0), "name": name, "size": 50} for name in names])

        async def found(search: str) -> list[str]:
            statement = select(Row).where(Row.size == 50)
            page: Page[Row] = await paginate(session, statement, ROWS, PageQuery(search=search))
            return [row.name for row in page.rows]

        assert await found("%") == ["100%"]
        assert await found("_") == ["a_b"]
        assert await found("\\") == ["c\\d"]
        assert await found("row") == ["ROW"]
        assert await found("' or 1=1 --") == []
        await session.rollback()


async def test_the_total_is_capped(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(
            text(
                "INSERT INTO page_rows (id, name, size) SELECT gen_random_uuid(), 'many', 60 + n / 10001 "
                "FROM generate_series(0, 10000 + 10001) n"
            )
        )
        page: Page[Row] = await paginate(session, select(Row).where(Row.size == 60), ROWS, PageQuery(limit=1))
        body = page.envelope(lambda row: row.name)
        assert (body["total"], body["total_capped"]) == (10_000, True)
        await session.execute(
            text("DELETE FROM page_rows WHERE id = (SELECT id FROM page_rows WHERE size = 60 LIMIT 1)")
        )
        page = await paginate(session, select(Row).where(Row.size == 60), ROWS, PageQuery(limit=1))
        assert (page.total, page.total_capped) == (10_000, False)
        await session.rollback()


async def test_a_page_is_one_range_of_an_index(session: AsyncSession) -> None:
    """The plan of a page behind a cursor has the row comparison as an index condition, and no sort."""
    await session.execute(text("CREATE INDEX page_rows_size ON page_rows (size, id)"))
    await session.execute(
        text("INSERT INTO page_rows (id, name, size) SELECT gen_random_uuid(), 'x', n FROM generate_series(1, 20000) n")
    )
    await session.execute(text("ANALYZE page_rows"))
    first: Page[Row] = await paginate(session, select(Row), ROWS, PageQuery(limit=50, order_by="size"))
    assert first.next_cursor is not None
    statements: list[str] = []
    for condition in pages._ranges(Row.size, Row.id, False, (5000, uuid4())):
        statement = select(Row).where(*condition).order_by(Row.size, Row.id).limit(51)
        compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        statements += (await session.scalars(text(f"EXPLAIN {compiled}"))).all()
    plan = "\n".join(statements)
    await session.rollback()
    assert "Index Cond: (ROW(size, id) > ROW(5000" in plan
    assert "Sort" not in plan


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problems.install(app)

    @app.get("/rows", response_model=ListOf[str])
    async def _rows(query: PageParams, size: int | None = None) -> dict[str, Any]:
        statement = select(Row) if size is None else select(Row).where(Row.size == size)
        async with AsyncSession(engine) as session:
            page: Page[Row] = await paginate(session, statement, ROWS, query)
        return page.envelope(lambda row: row.name)

    async with client_of(app) as client:
        yield client


async def test_over_http(client: httpx.AsyncClient) -> None:
    first = (await client.get("/rows?limit=30&size=1")).json()
    assert list(first) == ["object", "data", "total", "next_cursor"]
    assert (len(first["data"]), first["total"], first["next_cursor"]) == (20, 20, None)
    first = (await client.get("/rows?limit=15&size=1")).json()
    cursor = {"cursor": first["next_cursor"]}
    rest = (await client.get("/rows?limit=15&size=1", params={"limit": 5, "size": 1, **cursor})).json()
    assert (len(rest["data"]), rest["next_cursor"]) == (5, None)
    foreign = await client.get("/rows", params={"size": 2, **cursor})
    assert (foreign.status_code, foreign.json()["code"], foreign.json()["param"]) == (400, "invalid_cursor", "cursor")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "order_by=nope", "search=%00", "search=" + "a" * 201]
)
async def test_a_wrong_query_is_400(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/rows?{query}")
    assert (answer.status_code, answer.json()["param"]) == (400, query.split("=", maxsplit=1)[0])
