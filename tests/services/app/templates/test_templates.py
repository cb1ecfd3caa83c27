"""Templates: the built-in ones, and those that users make."""

import httpx
import pytest
from sqlalchemy import text

from services.app import icons
from services.app.context import AppContext
from services.app.templates import builtin
from services.app.wizards.fields import CONFIG_REQUIRED
from tests.services.app.conftest import People

CONFIG = {"concurrent_requests": 2, "avg_sequence_length": 100, "avg_context_length": 512, "ttft": [100, 500.5]}


def test_the_file_is_sound() -> None:
    templates = builtin.templates()
    assert {one.template_type for one in templates} >= {
        "chat",
        "summarization",
        "question_answering",
        "rag",
        "code",
        "embedding",
    }
    assert len({one.id for one in templates}) == len({one.name for one in templates}) == len(templates)
    for one in templates:
        assert one.icon is not None
        assert icons.resolve(one.icon) is not None
        assert all(getattr(one.deploy_config, name) for name in CONFIG_REQUIRED)


async def test_seeding_brings_them_and_brings_them_back(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    admin = await people.add("admin")
    await client.post("/templates", json={"name": "Chat", "deploy_config": CONFIG}, headers=admin.headers)
    await builtin.seed(app_context.database)
    first = (await client.get("/templates?builtin=true", headers=admin.headers)).json()
    assert first["total"] == len(builtin.templates())
    chat = next(one for one in first["data"] if one["template_type"] == "chat")
    assert chat["name"].startswith("Chat (")  # a user had the name first
    assert (chat["builtin"], chat["created_by"], chat["deploy_config"]["ttft"]) == (True, None, [100, 1500])
    async with app_context.database.transaction() as session:
        await session.execute(text("UPDATE platform.template SET description = 'old' WHERE template_type = 'rag'"))
    await builtin.seed(app_context.database)
    second = (await client.get("/templates?builtin=true", headers=admin.headers)).json()
    for before, after in zip(first["data"], second["data"], strict=True):
        if before["template_type"] == "rag":
            assert (after["description"], after["revision"]) == (before["description"], 2)
        else:
            assert after == before


async def test_builtin_ones_stay(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    await builtin.seed(app_context.database)
    admin = await people.add("admin")
    path = f"/templates/{builtin.templates()[0].id}"
    for method, body in (("PATCH", {"name": "x"}), ("DELETE", None)):
        answer = await client.request(method, path, json=body, headers=admin.headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "builtin")
    assert (await client.get(path, headers=admin.headers)).json()["revision"] == 1


async def test_a_template_of_ones_own(client: httpx.AsyncClient, people: People) -> None:
    ada, bob, operator = await people.add("member"), await people.add("member"), await people.add("operator")
    made = await client.post("/templates", json={"name": "t", "deploy_config": CONFIG}, headers=ada.headers)
    template = made.json()
    path = f"/templates/{template['id']}"
    assert (made.status_code, template["deploy_config"], template["template_type"]) == (201, CONFIG, "other")
    assert (await client.get(path, headers=bob.headers)).json() == template
    refused = await client.patch(path, json={"name": "x"}, headers=bob.headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_owner")
    config = {"concurrent_requests": 5}
    changed = await client.patch(
        path, json={"deploy_config": config, "icon": "icons/models/chat.png"}, headers=ada.headers
    )
    assert (changed.json()["deploy_config"], changed.json()["revision"], changed.headers["etag"]) == (config, 2, '"2"')
    stale = await client.delete(path, headers={**operator.headers, "If-Match": '"1"'})
    assert stale.status_code == 412
    assert (await client.delete(path, headers=operator.headers)).status_code == 204
    assert (await client.get(path, headers=ada.headers)).status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"deploy_config": {"concurrent_requests": 0}}, "deploy_config.concurrent_requests"),
        ({"deploy_config": {"concurrent_requests": True}}, "deploy_config.concurrent_requests"),
        ({"deploy_config": {"ttft": [5, 1]}}, "deploy_config.ttft"),
        ({"deploy_config": {"replicas": 1}}, "deploy_config.replicas"),
        ({"deploy_config": None}, "deploy_config"),
        ({"template_type": "poem"}, "template_type"),
        ({"icon": "../secret.png"}, "icon"),
        ({"name": None}, "name"),
    ],
)
async def test_bad_templates(client: httpx.AsyncClient, people: People, change: dict[str, object], param: str) -> None:
    member = await people.add("member")
    body = {"name": "t", "deploy_config": CONFIG, **change}
    answer = await client.post("/templates", json=body, headers=member.headers)
    assert (answer.status_code, answer.json()["errors"][0]["param"]) == (422, param)


async def test_filters(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    await builtin.seed(app_context.database)
    viewer = await people.add("viewer")
    code = (await client.get("/templates?template_type=code&order_by=-name", headers=viewer.headers)).json()
    assert [one["name"] for one in code["data"]] == ["Code generation", "Code completion"]
    found = (await client.get("/templates?search=VECTORS", headers=viewer.headers)).json()
    assert [one["name"] for one in found["data"]] == ["Embedding"]
    assert (await client.get("/templates?template_type=poem", headers=viewer.headers)).status_code == 400
