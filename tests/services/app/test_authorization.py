"""Who may do what: every route of people and things, called by everyone who there is."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from services.app.context import AppContext
from services.app.credentials.tables import CredentialRow
from services.app.templates.tables import TemplateRow
from tests.services.app import rows
from tests.services.app.conftest import ROUTERS, People, Person

CONFIG = {"concurrent_requests": 1}
KEY = {"api_key": "x"}


class Statuses(NamedTuple):
    nobody: int  # without a key
    viewer: int  # of the platform, and of the project
    other: int  # a member of another project
    member: int  # of the project
    manager: int  # of the project
    operator: int
    admin: int


PEOPLE: dict[str, tuple[str, str | None]] = {
    "viewer": ("viewer", "viewer"), "other": ("member", None), "member": ("member", "member"),
    "manager": ("member", "manager"), "operator": ("operator", None), "admin": ("admin", None),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What is in braces stands for things of someone else, made anew for every call; `{project}` is the project."""

    method: str
    path: str
    expected: tuple[int, ...]
    body: dict[str, Any] | None = field(default=None, hash=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


EVERYONE = (401, 200, 200, 200, 200, 200, 200)
SEEN = (401, 200, 404, 200, 200, 200, 200)
TABLE = [
    Row("GET", "/me", EVERYONE),
    Row("GET", "/users", (401, 403, 200, 200, 200, 200, 200)),
    Row("POST", "/users", (401, 403, 403, 403, 403, 403, 201), {"name": "{unique}"}),
    Row("GET", "/users/{user}", (401, 403, 200, 200, 200, 200, 200)),
    Row("PATCH", "/users/{user}", (401, 403, 403, 403, 403, 403, 200), {"role": "admin"}),
    Row("DELETE", "/users/{user}", (401, 403, 403, 403, 403, 403, 204)),
    Row("GET", "/keys", EVERYONE),
    Row("POST", "/keys", (401, 201, 201, 201, 201, 201, 201), {"name": "k"}),
    Row("POST", "/keys", (401, 403, 403, 403, 403, 403, 201), {"name": "k", "user_id": "{user}"}),
    Row("POST", "/keys", (401, 201, 422, 201, 201, 201, 201), {"name": "k", "project_id": "{project}"}),
    Row("GET", "/keys/{key}", (401, 404, 404, 404, 404, 404, 200)),
    Row("DELETE", "/keys/{key}", (401, 404, 404, 404, 404, 404, 204)),
    Row("POST", "/login", EVERYONE, {"key": "{own_key}"}),
    Row("GET", "/login", EVERYONE),
    Row("DELETE", "/login", (204,) * 7),
    Row("GET", "/projects", EVERYONE),
    Row("POST", "/projects", (401, 403, 201, 201, 201, 201, 201), {"name": "{unique}"}),
    Row("GET", "/projects/{project}", SEEN),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 200, 403, 200), {"description": "x"}),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 403, 403, 200), {"policy": {"require_scan": False}}),
    Row("PATCH", "/projects/{project}", (401, 403, 404, 403, 403, 403, 200), {"quotas": {"models": 9}}),
    Row("DELETE", "/projects/{project}", (401, 403, 404, 403, 204, 403, 204)),
    Row("GET", "/projects/{project}/members", SEEN),
    Row("GET", "/projects/{project}/members/{somebody}", SEEN),
    Row("PUT", "/projects/{project}/members/{user}", (401, 403, 404, 403, 201, 403, 201), {"role": "manager"}),
    Row("DELETE", "/projects/{project}/members/{somebody}", (401, 403, 404, 403, 204, 403, 204)),
    Row("GET", "/credential-types", EVERYONE),
    Row("GET", "/credentials", EVERYONE),
    Row("POST", "/credentials", (401, 403, 201, 201, 201, 201, 201), {"name": "c", "type": "openai", "fields": KEY}),
    Row("POST", "/credentials", (401, 403, 422, 201, 201, 201, 201),
        {"name": "c", "type": "openai", "fields": KEY, "project_id": "{project}"}),
    Row("GET", "/credentials/{shared}", SEEN),
    Row("PATCH", "/credentials/{shared}", (401, 403, 404, 200, 200, 200, 200), {"name": "x"}),
    Row("DELETE", "/credentials/{shared}", (401, 403, 404, 204, 204, 204, 204)),
    Row("GET", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 200)),
    Row("PATCH", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 200), {"name": "x"}),
    Row("DELETE", "/credentials/{personal}", (401, 404, 404, 404, 404, 404, 204)),
    Row("GET", "/templates", EVERYONE),
    Row("POST", "/templates", (401, 403, 201, 201, 201, 201, 201), {"name": "{unique}", "deploy_config": CONFIG}),
    Row("GET", "/templates/{template}", EVERYONE),
    Row("PATCH", "/templates/{template}", (401, 403, 403, 403, 403, 200, 200), {"description": "x"}),
    Row("DELETE", "/templates/{template}", (401, 403, 403, 403, 403, 204, 204)),
    Row("GET", "/models/providers", EVERYONE),
    Row("GET", "/models/catalog", EVERYONE),
    Row("GET", "/icons", EVERYONE),
    Row("GET", "/icons/providers/openai.png", (200,) * 7),
    Row("GET", "/audit", (401, 403, 403, 403, 200, 403, 200)),
    Row("GET", "/audit?project_id={project}", (401, 403, 403, 403, 200, 403, 200)),
]  # fmt: skip


async def make_things(app_context: AppContext, people: People, who: str) -> tuple[Person | None, dict[str, str]]:
    """Somebody, and a project with things of others around them."""
    project = await people.project(uuid4().hex)
    user = await people.add("member")
    somebody = await people.add("member", projects={project: "member"})
    person = None
    if who != "nobody":
        role, membership = PEOPLE[who]
        person = await people.add(role, projects={project: membership} if membership else {})
    shared, personal, template = uuid4(), uuid4(), uuid4()

    def credential(row_id: UUID, project_id: UUID | None) -> CredentialRow:
        sealed = app_context.keyring.seal(b"{}", f"credential:{row_id}")
        values = {"id": row_id, "name": uuid4().hex, "type": "openai", "owner_id": somebody.id, "fields": {}}
        return CredentialRow(**values, sealed=sealed, project_id=project_id)

    await rows.insert(
        app_context.database, credential(shared, project), credential(personal, None),
        TemplateRow(id=template, name=uuid4().hex, template_type="chat", deploy_config=CONFIG, created_by=somebody.id),
    )  # fmt: skip
    things = {
        "project": project, "user": user.id, "somebody": somebody.id, "key": user.key_id, "shared": shared,
        "personal": personal, "template": template, "unique": uuid4().hex, "own_key": person.key if person else "none",
    }  # fmt: skip
    return person, {name: str(value) for name, value in things.items()}


def filled(value: Any, things: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(one, things) for name, one in value.items()}
    return value.format_map(things) if isinstance(value, str) else value


async def changes(app_context: AppContext) -> int:
    async with app_context.database.statement() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM platform.audit"))).scalar_one())


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_who_may(client: httpx.AsyncClient, people: People, app_context: AppContext, row: Row) -> None:
    found = {}
    for who in Statuses._fields:
        person, things = await make_things(app_context, people, who)
        before = await changes(app_context)
        headers = person.headers if person else {}
        answer = await client.request(
            row.method, filled(row.path, things), json=filled(row.body, things), headers=headers
        )
        client.cookies.clear()
        found[who] = answer.status_code
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
        # Whoever is refused has changed nothing; whoever is not has left a trace.
        changed = row.method != "GET" and answer.status_code < 300 and (row.method, row.path) != ("DELETE", "/login")
        assert (await changes(app_context) > before) == changed, who
    assert Statuses(**found) == Statuses(*row.expected)


def test_the_table_has_every_route() -> None:
    """A route that is added must say here who may call it."""
    declared = set()
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            declared |= {(method, _anonymous(route.path)) for method in route.methods or ()}
    listed = {(row.method, _anonymous(row.path.split("?")[0])) for row in TABLE}
    listed = {(method, "/icons/{}" if path.startswith("/icons/") else path) for method, path in listed}
    assert listed == declared


def _anonymous(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


@pytest.mark.parametrize(
    ("scopes", "read", "write"), [(("read",), 200, 403), (("write",), 403, 201), (("inference",), 403, 403)]
)
async def test_scopes_narrow_even_an_admin(
    client: httpx.AsyncClient, people: People, scopes: tuple[str, ...], read: int, write: int
) -> None:
    admin = await people.add("admin", scopes=scopes)
    assert (await client.get("/projects", headers=admin.headers)).status_code == read
    assert (await client.post("/projects", json={"name": "p"}, headers=admin.headers)).status_code == write


async def test_a_bound_key_sees_its_project_only(client: httpx.AsyncClient, people: People) -> None:
    mine, other = await people.project("mine"), await people.project("other")
    admin = await people.add("admin", projects={mine: "manager", other: "manager"})
    bound = await people.key_for(admin.id, only_project=mine)
    listed = (await client.get("/projects", headers=bound.headers)).json()["data"]
    assert [one["id"] for one in listed] == [str(mine)]
    assert (await client.get(f"/projects/{other}", headers=bound.headers)).status_code == 404
    assert (await client.get(f"/projects/{mine}", headers=bound.headers)).status_code == 200
    for path, body in (
        ("/projects", {"name": "x"}), ("/templates", {"name": "x", "deploy_config": CONFIG}), ("/users", {"name": "x"}),
        ("/credentials", {"name": "x", "type": "openai", "fields": KEY}),
    ):  # fmt: skip
        assert (await client.post(path, json=body, headers=bound.headers)).status_code == 403, path
    memberships = (await client.get("/me", headers=bound.headers)).json()["memberships"]
    assert [one["project_id"] for one in memberships] == [str(mine)]
