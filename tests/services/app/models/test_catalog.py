"""The catalogue in the database: seeded, filtered, sorted, and what of it the platform has already."""

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.models import catalog, catalogue
from tests.services.app import rows
from tests.services.app.conftest import People, Person

MODELS = catalogue.cloud_models()


@pytest.fixture
async def viewer(people: People, app_context: AppContext) -> Person:
    await catalog.seed(app_context.database)
    return await people.add("viewer")


async def listed(client: httpx.AsyncClient, person: Person, path: str) -> list[dict[str, object]]:
    answer = await client.get(path, headers=person.headers)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, object]] = answer.json()["data"]
    return data


async def test_providers(client: httpx.AsyncClient, viewer: Person) -> None:
    seeds = catalogue.providers()
    found = {one["key"]: one for one in await listed(client, viewer, "/models/providers?limit=200")}
    assert set(found) == {seed.key for seed in seeds}
    for seed in seeds:
        one = found[seed.key]
        assert (one["id"], one["type"], one["icon"]) == (str(seed.id), seed.type, seed.icon)
        assert one["cloud_models"] == sum(model.provider_id == seed.id for model in MODELS)
    local = await listed(client, viewer, "/models/providers?type=hugging_face")
    assert [one["key"] for one in local] == ["hugging_face"]
    assert (await client.get("/models/providers?type=moon", headers=viewer.headers)).status_code == 400


async def test_seeding_again_follows_the_file_and_keeps_the_rest(
    client: httpx.AsyncClient, viewer: Person, app_context: AppContext
) -> None:
    before = await listed(client, viewer, "/models/catalog?limit=200")
    async with app_context.database.transaction() as session:
        await session.execute(text("UPDATE platform.cloud_model SET name = 'old', input_price = 5, tags = '[]'"))
        await session.execute(
            text("""INSERT INTO platform.cloud_model (id, provider_id, name, uri, modality)
                    SELECT gen_random_uuid(), id, 'zz retired', 'openai/retired', '{llm}'
                      FROM platform.provider WHERE key = 'openai'""")
        )
    await catalog.seed(app_context.database)
    after = await listed(client, viewer, "/models/catalog?limit=200")
    assert [one for one in after if one["name"] != "zz retired"] == before
    assert len(after) == len(before) + 1 == len(MODELS) + 1


async def test_every_page_together_is_the_catalogue(client: httpx.AsyncClient, viewer: Person) -> None:
    seen: list[dict[str, object]] = []
    cursor = ""
    while True:
        page = (
            await client.get(f"/models/catalog?limit=20&order_by=-context_length{cursor}", headers=viewer.headers)
        ).json()
        seen += page["data"]
        assert page["total"] == len(MODELS)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert {one["id"] for one in seen} == {str(model.id) for model in MODELS}
    lengths = [one["context_length"] for one in seen]
    known = [length for length in lengths if isinstance(length, int)]
    unknown: list[object] = [None] * (len(lengths) - len(known))
    assert lengths == [*unknown, *sorted(known, reverse=True)]


async def test_filters(client: httpx.AsyncClient, viewer: Person) -> None:
    provider = MODELS[0].provider_id
    expected = {
        f"provider_id={provider}": {m.uri for m in MODELS if m.provider_id == provider},
        "modality=embedding": {m.uri for m in MODELS if "embedding" in m.modality},
        "tag=reasoning": {m.uri for m in MODELS if any(tag.name == "reasoning" for tag in m.tags)},
        "deprecated=true": {m.uri for m in MODELS if m.deprecated},
        "deprecated=false&modality=image": {m.uri for m in MODELS if not m.deprecated and "image" in m.modality},
        "search=GPT": {m.uri for m in MODELS if "gpt" in (m.uri + m.name).lower()},
        "added=true": set(),
        "tag=nothing": set(),
    }
    for query, uris in expected.items():
        found = await listed(client, viewer, f"/models/catalog?limit=200&{query}")
        assert {one["uri"] for one in found} == uris, query
    for query in ("modality=smell", "order_by=uri", "tag=%00", "provider_id=x"):
        assert (await client.get(f"/models/catalog?{query}", headers=viewer.headers)).status_code == 400, query


async def test_what_has_been_added(
    client: httpx.AsyncClient, viewer: Person, people: People, app_context: AppContext
) -> None:
    project = await people.project("p")
    admin = await people.add("admin")
    mine, hidden, gone = MODELS[0], MODELS[1], MODELS[2]
    model = rows.model(cloud_model_id=mine.id)
    await rows.insert(
        app_context.database, model, rows.model(cloud_model_id=hidden.id, project_id=project),
        rows.model(cloud_model_id=gone.id, state="deleted"), rows.model(cloud_model_id=gone.id, state="failed"),
    )  # fmt: skip

    async def added(person: Person) -> set[object]:
        return {one["uri"] for one in await listed(client, person, "/models/catalog?added=true")}

    assert await added(viewer) == {mine.uri}
    assert await added(admin) == {mine.uri, hidden.uri}
    [shown] = await listed(client, viewer, "/models/catalog?added=true")
    assert (shown["added"], shown["model_id"]) == (True, str(model.id))
    rest = await listed(client, viewer, "/models/catalog?added=false&limit=200")
    assert len(rest) == len(MODELS) - 1
    assert not any(one["added"] or one["model_id"] for one in rest)
