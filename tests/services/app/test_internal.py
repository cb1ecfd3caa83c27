"""What workers may ask of the app: only for a living job, only about what its input names."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from services.app.clusters import repository as clusters
from services.app.context import AppContext
from services.app.credentials import service as credentials
from services.app.credentials.schemas import CredentialIn
from services.app.endpoints import repository
from services.app.endpoints.deploy import key_context
from services.app.identity.caller import Caller
from services.app.internal import AppAccess
from shared.db.engine import Database
from shared.jobs.outcomes import Permanent
from shared.jobs.tables import JobRow
from shared.rpc.server import caller
from tests.services.app import rows
from tests.services.app.conftest import People


@pytest.fixture
def access(app_context: AppContext) -> AppAccess:
    return AppAccess(app_context)


async def job(database: Database, state: str = "running", **spec: object) -> UUID:
    row = JobRow(
        id=uuid4(),
        kind="deploy_model",
        version=1,
        state=state,
        input={name: str(value) for name, value in spec.items()},
    )
    await rows.insert(database, row)
    return row.id


async def endpoint(context: AppContext, people: People, **values: Any) -> UUID:
    cluster, model, endpoint_id = rows.cluster(), rows.model(), uuid4()
    sealed = context.keyring.seal(b"worker-key", key_context(endpoint_id))
    row = rows.endpoint(
        await people.project(f"p-{uuid4().hex[:6]}"),
        model.id,
        cluster.id,
        **{"id": endpoint_id, "sealed": sealed, **values},
    )
    await rows.insert(context.database, cluster, model, row)
    return endpoint_id


async def test_a_living_job_gets_the_key_of_the_endpoint_that_it_names(
    access: AppAccess, app_context: AppContext, people: People, database: Database
) -> None:
    mine, other = await endpoint(app_context, people), await endpoint(app_context, people)
    job_id = await job(database, endpoint_id=mine)
    assert await access.worker_key(job_id, mine) == "worker-key"
    with pytest.raises(Permanent, match="does not name"):
        await access.worker_key(job_id, other)
    with pytest.raises(Permanent, match="does not name"):
        await access.worker_key(uuid4(), mine)


async def test_a_service_gets_nothing_for_the_job_of_another(
    app_context: AppContext, people: People, database: Database
) -> None:
    access = AppAccess(app_context, {"deploy_model": "cluster"})
    mine = await endpoint(app_context, people)
    job_id = await job(database, endpoint_id=mine)
    for service in ("cluster", "model"):
        known = caller.set(service)
        try:
            if service == "cluster":
                assert await access.worker_key(job_id, mine) == "worker-key"
            else:
                with pytest.raises(Permanent, match="another service's"):
                    await access.worker_key(job_id, mine)
        finally:
            caller.reset(known)


@pytest.mark.parametrize("state", ["pending", "succeeded", "failed", "cancelled"])
async def test_a_job_that_does_not_run_gets_nothing(
    access: AppAccess, app_context: AppContext, people: People, database: Database, state: str
) -> None:
    mine = await endpoint(app_context, people)
    with pytest.raises(Permanent, match="does not name"):
        await access.worker_key(await job(database, state, endpoint_id=mine), mine)


async def test_what_was_deleted_meanwhile_is_told(
    access: AppAccess, app_context: AppContext, people: People, database: Database
) -> None:
    gone = await endpoint(app_context, people, phase="deleted", state="deleted")
    job_id = await job(database, endpoint_id=gone, model_id=UUID(int=2), project_id=UUID(int=4))
    for call in (
        access.worker_key(job_id, gone), access.publish(job_id, gone, {}),
        access.check_gate(job_id, UUID(int=2), UUID(int=4), None), access.cluster_kind(UUID(int=3)),
    ):  # fmt: skip
        with pytest.raises(Permanent) as raised:
            await call
        assert raised.value.code.endswith("_gone")


async def test_two_clusters_are_never_the_same(access: AppAccess, database: Database) -> None:
    first, second = rows.cluster(), rows.cluster()
    await rows.insert(database, first, second)
    await access.claim_cluster(await job(database, cluster_id=first.id), first.id, "uid-1")
    await access.claim_cluster(await job(database, cluster_id=first.id), first.id, "uid-1")
    with pytest.raises(Permanent, match=first.name):
        await access.claim_cluster(await job(database, cluster_id=second.id), second.id, "uid-1")


async def test_an_older_look_does_not_undo_what_a_job_has_published(
    access: AppAccess, app_context: AppContext, people: People, database: Database
) -> None:
    mine = await endpoint(app_context, people, desired={"replicas": 1})
    async with database.transaction() as session:
        row = await repository.get(session, mine)
        assert row is not None
        cluster_id = row.cluster_id
    ready = {"id": "w", "ordinal": 0, "state": "ready"}
    newer = {"endpoint_id": str(mine), "observed_at": "2026-01-01T00:00:02+00:00", "workers": [ready]}
    older = {**newer, "observed_at": "2026-01-01T00:00:01+00:00", "workers": []}
    await access.publish(await job(database, endpoint_id=mine), mine, newer)
    assert await access.observe(cluster_id, 1, [older])
    async with database.transaction() as session:
        row = await repository.get(session, mine)
        assert row is not None
        assert row.observed == newer
        assert row.state == "running"
    assert await access.observe(cluster_id, 1, [])  # nothing is there any more
    async with database.transaction() as session:
        row = await repository.get(session, mine)
        assert row is not None
        assert row.state == "unavailable"


async def test_what_is_seen_is_told_while_a_trigger_is_under_way(access: AppAccess, database: Database) -> None:
    cluster = rows.cluster()
    await rows.insert(database, cluster)
    async with database.transaction() as deploying:
        assert await clusters.get(deploying, cluster.id, share=True) is not None
        assert await access.reachable(cluster.id, 1, None)
        assert await access.observe(cluster.id, 1, [])


async def test_a_credential_is_told_as_litellm_takes_it(
    access: AppAccess, app_context: AppContext, people: People, database: Database
) -> None:
    owner = await people.add("member")
    caller = Caller(owner.id, "member", "member", owner.key_id, frozenset())
    fields = {"api_key": "sk-provider", "base_url": "https://models.example/v1"}
    async with database.transaction() as session:
        body = CredentialIn(name="mine", type="openai", fields=fields)
        made = await credentials.create(session, app_context.keyring, caller, body)
    credential_id = UUID(made["id"])
    job_id = await job(database, credential_id=credential_id)
    with pytest.raises(Permanent):  # nobody has asked for this job
        await access.provider_parameters(job_id, credential_id)
    async with database.transaction() as session:
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(owner_id=owner.id))
    told = await access.provider_parameters(job_id, credential_id)
    assert told == {"api_key": "sk-provider", "api_base": "https://models.example/v1"}


async def test_where_a_cluster_is_entered(access: AppAccess, database: Database) -> None:
    entered, closed = rows.cluster(ingress_url="https://in.example"), rows.cluster()
    await rows.insert(database, entered, closed)
    assert await access.cluster_ingress(entered.id) == "https://in.example"
    assert await access.cluster_ingress(closed.id) is None
