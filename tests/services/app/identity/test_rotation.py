"""Rotation of the encryption keys: everything opens afterwards, old keys go, and an interruption does no harm."""

import asyncio
import base64
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.credentials.tables import CredentialRow
from services.app.endpoints.tables import EndpointRow
from services.app.identity import rotation, sealed
from services.app.wizards.tables import WorkflowRow
from shared.errors import Problem
from shared.security.envelope import Keyring, key_id_of
from tests.services.app import rows
from tests.services.app.conftest import People


def credential(keyring: Keyring, owner_id: UUID, secret: str) -> CredentialRow:
    row_id = uuid4()
    value = keyring.seal(secret.encode(), f"credential:{row_id}")
    return CredentialRow(id=row_id, name=str(row_id), type="openai", owner_id=owner_id, fields={}, sealed=value)


@pytest.fixture
async def owner_id(people: People) -> UUID:
    return (await people.add("member")).id


async def fill(app_context: AppContext, owner_id: UUID, project_id: UUID, count: int) -> UUID:
    """Credentials, a cluster, an endpoint and two workflows; returns the workflow with a file."""
    keyring, database = app_context.keyring, app_context.database
    cluster_id, endpoint_id, workflow_id, other_id = (uuid4() for _ in range(4))
    cluster = rows.cluster(id=cluster_id, sealed=keyring.seal(b"kubeconfig", f"cluster:{cluster_id}"))
    model = rows.model()
    endpoint = rows.endpoint(
        project_id, model.id, cluster_id, id=endpoint_id, sealed=keyring.seal(b"worker", f"endpoint:{endpoint_id}")
    )
    file = keyring.seal(b"upload", f"workflow:{workflow_id}:configuration_file")
    files = {
        "configuration_file": {"name": "a", "size": 6, "sha256": "x", "sealed": base64.b64encode(file).decode()},
        "gone": {"name": "b", "size": 1, "sha256": "y", "sealed": None},
    }
    async with database.transaction() as session:
        for one in (workflow_id, other_id):
            await session.execute(text("INSERT INTO jobs.topic (id) VALUES (:id)"), {"id": one})
    workflows = [
        WorkflowRow(id=one, type="cluster_onboarding", owner_id=owner_id, status="in_progress", current_step=1, total_steps=3,
                    fields={}, field_steps={}, files=held)
        for one, held in ((workflow_id, files), (other_id, {}))
    ]  # fmt: skip
    credentials = [credential(keyring, owner_id, f"secret {number}") for number in range(count)]
    await rows.insert(database, cluster, rows.cluster(), model, endpoint, *workflows, *credentials)
    return workflow_id


async def opened(app_context: AppContext, workflow_id: UUID) -> set[bytes]:
    """Every secret, opened."""
    keyring = app_context.keyring
    found = set[bytes]()
    async with app_context.database.transaction() as session:
        for table in sealed.COLUMNS:
            stored = await session.execute(
                text(f"SELECT id, sealed FROM {sealed.COLUMNS[table]} WHERE sealed IS NOT NULL")
            )
            found |= {keyring.open(row.sealed, f"{table}:{row.id}") for row in stored}
        workflow = await session.get_one(WorkflowRow, workflow_id)
        file = base64.b64decode(workflow.files["configuration_file"]["sealed"])
        return found | {keyring.open(file, f"workflow:{workflow_id}:configuration_file")}


async def used(app_context: AppContext) -> set[str]:
    async with app_context.database.transaction() as session:
        return await sealed.keys_in_use(session)


async def test_everything_is_under_the_new_key(
    app_context: AppContext, people: People, owner_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 3)
    workflow_id = await fill(app_context, owner_id, await people.project("p"), 10)
    before, secrets = app_context.keyring.active_key_id, await opened(app_context, workflow_id)
    assert len(secrets) == 13
    done = await rotation.rotate(app_context.database, app_context.keyring)
    assert (done.rewrapped, done.unreadable, done.retired, done.kept) == (13, [], [before], [])
    assert done.active != before
    assert await used(app_context) == {done.active} == set(app_context.keyring.key_ids)
    assert await opened(app_context, workflow_id) == secrets
    again = await rotation.finish(app_context.database, app_context.keyring)
    assert (again.active, again.rewrapped, again.retired) == (done.active, 0, [])
    async with app_context.database.statement() as connection:
        shown = (
            await connection.execute(text("SELECT action, details ->> 'rewrapped' AS n FROM platform.audit"))
        ).all()
    assert [tuple(row) for row in shown] == [("encryption.rotate", "13"), ("encryption.rotate", "0")]


async def test_an_interrupted_rotation_goes_on(
    app_context: AppContext, people: People, owner_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    workflow_id = await fill(app_context, owner_id, await people.project("p"), 5)
    secrets = await opened(app_context, workflow_id)
    replace, calls = sealed.replace, 0

    async def killed(session: AsyncSession, table: str, row_id: UUID, value: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("killed")
        await replace(session, table, row_id, value)

    monkeypatch.setattr(sealed, "replace", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await rotation.rotate(app_context.database, app_context.keyring)
    monkeypatch.setattr(sealed, "replace", replace)
    assert len(await used(app_context)) == 2
    assert await opened(app_context, workflow_id) == secrets
    done = await rotation.finish(app_context.database, app_context.keyring)
    assert (done.rewrapped, done.kept) == (6, [])
    assert await opened(app_context, workflow_id) == secrets


async def test_what_nobody_can_read_stays_and_is_named(app_context: AppContext, owner_id: UUID, people: People) -> None:
    workflow_id = await fill(app_context, owner_id, await people.project("p"), 1)
    damaged = credential(app_context.keyring, owner_id, "x")
    value = bytearray(damaged.sealed)
    value[30] ^= 1  # within the wrapped data key
    damaged.sealed = bytes(value)
    await rows.insert(app_context.database, damaged)
    old = app_context.keyring.active_key_id
    done = await rotation.rotate(app_context.database, app_context.keyring)
    assert done.unreadable == [f"credential:{damaged.id}"]
    assert (done.rewrapped, done.retired, done.kept) == (4, [], [old])
    assert (await used(app_context)) == {old, done.active}
    async with app_context.database.transaction() as session:
        await session.delete(await session.get_one(CredentialRow, damaged.id))
    assert (await rotation.finish(app_context.database, app_context.keyring)).retired == [old]
    assert len(await opened(app_context, workflow_id)) == 4


async def test_a_key_outlives_the_transactions_that_used_it(app_context: AppContext, owner_id: UUID) -> None:
    database, keyring = app_context.database, app_context.keyring
    old = keyring.active_key_id
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        late = credential(keyring, owner_id, "late")
        impatient = await rotation.rotate(database, keyring, patience=0.3)
        assert (impatient.retired, impatient.kept) == ([], [old])
        patient = asyncio.create_task(rotation.finish(database, keyring))
        await asyncio.sleep(0.3)  # it is waiting for this transaction
        assert not patient.done()
        session.add(late)
    done = await patient
    assert (done.rewrapped, done.retired) == (1, [old])
    async with database.transaction() as session:
        row = await session.get_one(CredentialRow, late.id)
        assert key_id_of(row.sealed) == done.active
        assert keyring.open(row.sealed, f"credential:{late.id}") == b"late"


async def test_one_at_a_time(app_context: AppContext) -> None:
    database, keyring = app_context.database, app_context.keyring
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        first = asyncio.create_task(rotation.rotate(database, keyring))
        async with asyncio.timeout(10):
            while True:  # until the first one holds the lock
                held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                if (await session.execute(text(held))).scalar_one():
                    break
                await asyncio.sleep(0.01)
        with pytest.raises(Problem, match="conflict"):
            await rotation.rotate(database, keyring)
    await first
    assert len(keyring.key_ids) == 1
    assert EndpointRow.__table__.c.sealed.nullable is False  # every endpoint has a value to rotate


def test_every_sealed_column_is_rotated() -> None:
    tables = {table.fullname for table in WorkflowRow.metadata.tables.values() if "sealed" in table.c}
    assert tables == set(sealed.COLUMNS.values())
