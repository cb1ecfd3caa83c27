"""Registered clusters: new credentials, inspection, orphans, deletion with and without asking the cluster."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select

from services.app.audit.tables import AuditRow
from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository as endpoints
from services.app.internal import AppAccess
from shared.contracts.clusters import ClusterSpec, CredentialsChecked, EndpointsRemoved, Orphan, Registered
from shared.jobs.ledger import JobRequest
from shared.jobs.outcomes import Permanent
from tests.services.app import rows
from tests.services.app.conftest import NoClusters, People, Person
from tests.testbed.certificates import as_yaml, kubeconfig

NEW = as_yaml(kubeconfig(user={"token": "the-new-token"})).decode()
FACTS = {"uid": "u", "version": "v1.34.0", "facts": {"version": "v1.34.0", "node_count": 2}}


class Upkeep:
    def __init__(self, client: httpx.AsyncClient, context: AppContext, operator: Person, people: People) -> None:
        self.client = client
        self.context = context
        self.operator = operator
        self.people = people

    async def cluster(self, **values: Any) -> UUID:
        cluster_id: UUID = values.pop("id", uuid4())
        sealed = self.context.keyring.seal(b"old", onboarding.key_context(cluster_id))
        await rows.insert(self.context.database, rows.cluster(**{"id": cluster_id, "sealed": sealed, **values}))
        return cluster_id

    async def endpoint(self, cluster_id: UUID, **values: Any) -> UUID:
        model = rows.model()
        project = await self.people.project(uuid4().hex)
        row = rows.endpoint(project, model.id, cluster_id, **{"desired": {"replicas": 1}, **values})
        await rows.insert(self.context.database, model, row)
        return row.id

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.client.request(method, path, headers=self.operator.headers, **options)

    async def row(self, cluster_id: UUID) -> ClusterRow:
        async with self.context.database.transaction() as session:
            row = await clusters.get(session, cluster_id)
        assert row is not None
        return row

    async def end(self, job: dict[str, Any], result: Any) -> None:
        """The job has done its work."""
        spec = ClusterSpec(cluster_id=UUID(job["resource"]["id"]), name="c")
        request = JobRequest(self.context.jobs.latest(job["kind"]), spec, finished=result, id=UUID(job["id"]))
        async with self.context.database.transaction() as session:
            await self.context.ledger.transition(session, request.id, "running")
            await self.context.ledger.complete(session, request)

    async def cancel(self, job: dict[str, Any]) -> None:
        async with self.context.database.transaction() as session:
            await self.context.ledger.cancel(session, UUID(job["id"]))


@pytest.fixture
async def upkeep(client: httpx.AsyncClient, app_context: AppContext, people: People) -> Upkeep:
    return Upkeep(client, app_context, await people.add("operator"), people)


async def test_new_credentials_take_the_place_of_the_old_ones_once_they_have_been_tried(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster()
    context = upkeep.context
    answer = await upkeep.ask("PUT", f"/clusters/{cluster_id}/credentials", json={"configuration_file": NEW})
    assert answer.status_code == 202
    assert "the-new-token" not in answer.text
    job = answer.json()
    second = await upkeep.ask("PUT", f"/clusters/{cluster_id}/credentials", json={"configuration_file": NEW})
    assert (second.status_code, second.json()["code"]) == (409, "conflict")
    assert context.keyring.open((await upkeep.row(cluster_id)).sealed or b"", f"cluster:{cluster_id}") == b"old"
    async with context.database.transaction() as session:
        await context.ledger.transition(session, UUID(job["id"]), "running")
    assert b"the-new-token" in await AppAccess(context).kubeconfig(UUID(job["id"]), cluster_id)
    async with context.database.transaction() as session:
        result = CredentialsChecked(**FACTS, access={"server": "new:6443"})
        spec = ClusterSpec(cluster_id=cluster_id, name="c")
        definition = context.jobs.latest(job["kind"])
        await context.ledger.complete(session, JobRequest(definition, spec, finished=result, id=UUID(job["id"])))
    row = await upkeep.row(cluster_id)
    assert b"the-new-token" in context.keyring.open(row.sealed or b"", f"cluster:{cluster_id}")
    assert (row.access, row.facts, row.state) == ({"server": "new:6443"}, FACTS["facts"], "available")
    async with context.database.transaction() as session:
        assert await clusters.access_of(session, UUID(job["id"])) is None
        assert "the-new-token" not in str((await session.execute(select(AuditRow.details))).scalars().all())


async def test_credentials_that_are_cancelled_leave_the_old_ones(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster()
    form = {"configuration_file": ("kubeconfig", NEW.encode())}
    job = (await upkeep.ask("PUT", f"/clusters/{cluster_id}/credentials", files=form)).json()
    await upkeep.cancel(job)
    row = await upkeep.row(cluster_id)
    assert upkeep.context.keyring.open(row.sealed or b"", f"cluster:{cluster_id}") == b"old"
    assert row.state == "available"
    retried = await upkeep.ask("PUT", f"/clusters/{cluster_id}/credentials", json={"configuration_file": NEW})
    assert retried.status_code == 202


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"configuration_file": "kind: Pod"}, "kubeconfig_wrong_kind"),
        ({"configuration_file": ""}, "kubeconfig_empty"),
        ({"configuration_file": NEW, "extra": 1}, "unknown_field"),
        ({}, "validation_failed"),
    ],
)
async def test_bad_files_are_refused_as_at_the_form(upkeep: Upkeep, body: dict[str, Any], code: str) -> None:
    answer = await upkeep.ask("PUT", f"/clusters/{await upkeep.cluster()}/credentials", json=body)
    assert answer.status_code == 422
    assert code in (answer.json()["code"], answer.json()["errors"][0]["code"])


async def test_a_failed_registration_is_mended_by_other_credentials_or_deleted(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster(state="error", reason="The token is revoked.")
    job = (await upkeep.ask("PUT", f"/clusters/{cluster_id}/credentials", json={"configuration_file": NEW})).json()
    assert (await upkeep.row(cluster_id)).state == "registering"
    await upkeep.end(job, CredentialsChecked(**FACTS, access={}))
    assert (await upkeep.row(cluster_id)).state == "available"
    other = await upkeep.cluster(state="error")
    assert (await upkeep.ask("DELETE", f"/clusters/{other}")).status_code == 204
    assert (await upkeep.row(other)).sealed is None


async def test_a_cluster_is_inspected_once_at_a_time(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster()
    first, second = [(await upkeep.ask("POST", f"/clusters/{cluster_id}/inspect")).json() for _ in range(2)]
    assert first["id"] == second["id"]
    await upkeep.end(first, Registered(**FACTS))
    assert (await upkeep.row(cluster_id)).facts == FACTS["facts"]
    assert (await upkeep.ask("POST", f"/clusters/{cluster_id}/inspect")).json()["id"] != first["id"]


async def test_a_cluster_goes_once_nothing_of_ours_is_on_it(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster()
    endpoint = await upkeep.endpoint(cluster_id)
    refused = await upkeep.ask("DELETE", f"/clusters/{cluster_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    async with upkeep.context.database.transaction() as session:
        gone = await endpoints.get(session, endpoint)
        assert gone is not None
        gone.phase = gone.state = "deleted"
    job = (await upkeep.ask("DELETE", f"/clusters/{cluster_id}")).json()
    assert (await upkeep.row(cluster_id)).state == "deleting"
    await upkeep.cancel(job)
    row = await upkeep.row(cluster_id)
    assert row.state == "unavailable"
    assert row.sealed
    job = (await upkeep.ask("DELETE", f"/clusters/{cluster_id}")).json()
    await upkeep.end(job, EndpointsRemoved(cluster_id=cluster_id))
    row = await upkeep.row(cluster_id)
    assert (row.state, row.sealed, row.access) == ("deleted", None, {})


@pytest.mark.parametrize("state", ["available", "unavailable", "deleting", "registering", "error"])
async def test_force_forgets_a_cluster_with_its_endpoints(upkeep: Upkeep, state: str) -> None:
    cluster_id = await upkeep.cluster(state=state)
    endpoint = await upkeep.endpoint(cluster_id)
    assert (await upkeep.ask("DELETE", f"/clusters/{cluster_id}?force=true")).status_code == 204
    row = await upkeep.row(cluster_id)
    assert (row.state, row.sealed) == ("deleted", None)
    async with upkeep.context.database.transaction() as session:
        gone = await endpoints.get(session, endpoint)
        assert gone is not None
        assert (gone.phase, gone.state) == ("deleted", "deleted")
        assert "by force" in (gone.reason or "")
        told = (await session.execute(select(AuditRow).order_by(AuditRow.id))).scalars().all()
    assert [(one.action, one.details.get("forced")) for one in told] == [
        ("endpoint.delete", True), ("cluster.delete", True),
    ]  # fmt: skip
    assert told[1].details["endpoints"] == [gone.name]


async def test_this_machine_is_refused_all_of_it(upkeep: Upkeep) -> None:
    machine = await upkeep.cluster(kind="local")
    for method, path in (("DELETE", ""), ("DELETE", "?force=true"), ("POST", "/inspect"), ("GET", "/orphans")):
        answer = await upkeep.ask(method, f"/clusters/{machine}{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "cluster_is_local")


async def test_orphans_are_what_no_row_knows(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster()
    known = await upkeep.endpoint(cluster_id, phase="failed", state="failed")
    deleted = await upkeep.endpoint(cluster_id, phase="deleted", state="deleted")

    class Leftovers(NoClusters):
        async def leftovers(self, cluster_id: UUID) -> list[Orphan]:
            return [Orphan(endpoint_id=one, objects=["Secret/x"]) for one in (str(known), str(deleted), "stray")]

    upkeep.context.clusters = Leftovers()
    found = (await upkeep.ask("GET", f"/clusters/{cluster_id}/orphans")).json()["data"]
    assert sorted(one["endpoint_id"] for one in found) == sorted([str(deleted), "stray"])


async def test_another_cluster_does_not_pass_for_a_registered_one(upkeep: Upkeep) -> None:
    cluster_id = await upkeep.cluster(uid="the-one")
    job = UUID((await upkeep.ask("POST", f"/clusters/{cluster_id}/inspect")).json()["id"])
    async with upkeep.context.database.transaction() as session:
        await upkeep.context.ledger.transition(session, job, "running")
    app = AppAccess(upkeep.context)
    await app.claim_cluster(job, cluster_id, "the-one")
    with pytest.raises(Permanent) as raised:
        await app.claim_cluster(job, cluster_id, "another")
    assert raised.value.code == "cluster_is_another"
