"""Who may ask an endpoint that the gateway of this process has not heard of yet: the rows say it."""

from uuid import uuid4

import httpx

from services.app.context import AppContext
from services.gateway.table import RouteTable
from tests.services.app import rows
from tests.services.app.conftest import People


async def test_an_endpoint_that_has_just_come_up_exists(
    client: httpx.AsyncClient, people: People, app_context: AppContext, routes: RouteTable
) -> None:
    project = await people.project("p")
    model, cluster = rows.model(), rows.cluster()
    new, gone = (rows.endpoint(project, model.id, cluster.id, phase=phase) for phase in ("serving", "deleted"))
    await rows.insert(app_context.database, model, cluster, new, gone)
    member, stranger = await people.add("member", projects={project: "member"}), await people.add("member")

    async def code(person: dict[str, str], endpoint: object) -> tuple[int, str]:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        answer = await client.post(f"/endpoints/{endpoint}/v1/chat/completions", headers=person, json=body)
        return answer.status_code, answer.json()["error"]["code"]

    assert routes.get(new.id) is None
    assert await code(member.headers, new.id) == (503, "endpoint_unavailable")
    assert await code(stranger.headers, new.id) == (404, "not_found")
    assert await code(member.headers, gone.id) == (404, "not_found")
    assert await code(member.headers, uuid4()) == (404, "not_found")
