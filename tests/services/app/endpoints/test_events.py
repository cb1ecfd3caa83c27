"""What happened to an endpoint, as its cluster's observer tells it: states, restarts, repairs; bounded."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from services.app.context import AppContext
from services.app.endpoints import events
from services.app.endpoints import repository as endpoints
from services.app.internal import AppAccess
from shared.jobs.outcomes import Permanent
from tests.services.app import rows
from tests.services.app.conftest import People


@pytest.fixture
async def served(app_context: AppContext, people: People) -> tuple[UUID, UUID]:
    """The ids of a cluster and of an endpoint on it."""
    cluster, model = rows.cluster(name="far"), rows.model()
    values = {"desired": {"replicas": 1}, "state": "unavailable"}
    endpoint = rows.endpoint(await people.project("p"), model.id, cluster.id, **values)
    await rows.insert(app_context.database, cluster, model, endpoint)
    return cluster.id, endpoint.id


def seen(endpoint_id: UUID, **values: Any) -> dict[str, Any]:
    worker = {"id": "pod", "ordinal": 0, "state": "ready", "restarts": values.pop("restarts", 0)}
    return {"endpoint_id": str(endpoint_id), "workers": [worker], **values}


async def test_the_newest_come_first_and_the_oldest_go(
    client: httpx.AsyncClient, app_context: AppContext, people: People, served: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cluster_id, endpoint_id = served
    app, path = AppAccess(app_context), f"/endpoints/{endpoint_id}/events"
    admin = await people.add("admin")
    assert await app.observe(cluster_id, 1, [seen(endpoint_id)])
    changed = {"reason": "changed_by_others", "message": "Somebody changed the Deployment x: spec.replicas."}
    assert await app.observe_some(cluster_id, 1, {str(endpoint_id): seen(endpoint_id, restarts=2, **changed)})
    await app.tell(cluster_id, 1, endpoint_id, "healed", "It was put back.")
    first = (await client.get(f"{path}?limit=3", headers=admin.headers)).json()
    assert [(one["type"], one["state"]) for one in first["data"]] == [
        ("healed", "degraded"), ("state", "degraded"), ("worker_restarted", "running"),
    ]  # fmt: skip
    assert first["data"][1]["message"] == changed["message"]
    assert "Worker pod was restarted, 2 times so far." in first["data"][2]["message"]
    rest = (await client.get(f"{path}?limit=3&cursor={first['next_cursor']}", headers=admin.headers)).json()
    assert [(one["type"], one["state"]) for one in rest["data"]] == [("state", "running")]
    monkeypatch.setattr(events, "KEPT", 2)
    async with app_context.database.transaction() as session:
        await events.trim(session, days=90)
    kept = (await client.get(path, headers=admin.headers)).json()["data"]
    assert [one["id"] for one in kept] == [one["id"] for one in first["data"][:2]]


async def test_a_cluster_that_cannot_be_seen_takes_its_endpoints_along(
    client: httpx.AsyncClient, app_context: AppContext, people: People, served: tuple[UUID, UUID]
) -> None:
    cluster_id, endpoint_id = served
    app, admin = AppAccess(app_context), await people.add("admin")
    assert await app.observe(cluster_id, 3, [seen(endpoint_id)])
    assert await app.reachable(cluster_id, 3, "It refuses connections.")
    shown = (await client.get(f"/endpoints/{endpoint_id}", headers=admin.headers)).json()
    assert (shown["state"], shown["replicas"]["ready"]) == ("unavailable", 0)
    assert shown["reason"] == "The cluster far is unavailable: It refuses connections."
    (worker,) = (await client.get(f"/endpoints/{endpoint_id}/workers", headers=admin.headers)).json()["data"]
    assert worker["state"] == "unknown"
    cluster = (await client.get(f"/clusters/{cluster_id}", headers=admin.headers)).json()
    assert (cluster["state"], cluster["reason"]) == ("unavailable", "It refuses connections.")
    assert await app.reachable(cluster_id, 3, None)
    assert await app.observe(cluster_id, 3, [seen(endpoint_id)])
    shown = (await client.get(f"/endpoints/{endpoint_id}", headers=admin.headers)).json()
    assert (shown["state"], shown["reason"]) == ("running", None)


async def test_an_observer_without_the_lease_is_not_believed(
    app_context: AppContext, served: tuple[UUID, UUID]
) -> None:
    cluster_id, endpoint_id = served
    app = AppAccess(app_context)
    assert await app.observe(cluster_id, 7, [seen(endpoint_id)])
    assert not await app.reachable(cluster_id, 6, "gone")
    assert not await app.observe_some(cluster_id, 6, {str(endpoint_id): None})
    assert not await app.inspected(cluster_id, 6, {})
    for call in (
        app.cluster_kubeconfig(cluster_id, 6), app.endpoint_parameters(cluster_id, 6, endpoint_id),
        app.tell(cluster_id, 6, endpoint_id, "healed", "x"),
    ):  # fmt: skip
        with pytest.raises(Permanent, match="Another observer"):
            await call
    async with app_context.database.transaction() as session:
        row = await endpoints.get(session, endpoint_id)
        assert row is not None
        assert row.state == "running"
