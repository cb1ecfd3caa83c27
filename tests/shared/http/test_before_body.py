"""What a `StrictRoute` asks before it reads a body: who is refused learns nothing of the body's faults."""

from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Form, Request
from pydantic import BaseModel

from shared.errors import Problem
from shared.http import problems
from shared.http.bodies import StrictRoute, before_body
from tests.shared.http.conftest import client_of


class Thing(BaseModel):
    name: str


asked: list[str] = []


@before_body
async def who(request: Request) -> str:
    asked.append(request.url.path)
    if "authorization" not in request.headers:
        raise Problem("unauthenticated", "Send a key.")
    return request.headers["authorization"]


async def named(caller: Annotated[str, Depends(who)]) -> str:
    return caller.upper()


router = APIRouter(route_class=StrictRoute)


@router.post("/json")
async def _json(body: Thing, caller: Annotated[str, Depends(who)]) -> str:
    return f"{caller} {body.name}"


@router.post("/form")
async def _form(
    form: Annotated[Thing, Form(media_type="multipart/form-data")], caller: Annotated[str, Depends(named)]
) -> str:
    return f"{caller} {form.name}"


@router.post("/open")
async def _open(body: Thing) -> str:
    return body.name


@pytest.fixture
def app() -> FastAPI:
    asked.clear()
    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    return app


@pytest.mark.parametrize("path", ["/json", "/form"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a", "name": "b"}', b"\xff"])
async def test_a_stranger_is_401_whatever_the_body(app: FastAPI, path: str, content: bytes) -> None:
    async with client_of(app) as client:
        answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_who_may_is_told_the_faults_and_gets_the_answer(app: FastAPI) -> None:
    async with client_of(app) as client:
        client.headers["Authorization"] = "ada"
        broken = await client.post("/json", content=b"{", headers={"Content-Type": "application/json"})
        right = await client.post("/json", json={"name": "x"})
        form = await client.post("/form", files={"name": (None, "y")})
    assert (broken.status_code, broken.json()["code"]) == (400, "invalid_json")
    assert (right.json(), form.json()) == ("ada x", "ADA y")


async def test_a_route_that_depends_on_nobody_asks_nobody(app: FastAPI) -> None:
    async with client_of(app) as client:
        assert (await client.post("/open", json={"name": "x"})).json() == "x"
    assert asked == []
