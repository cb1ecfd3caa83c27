"""The duties that are done now and then, each by what it leaves and what it takes."""

import os
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.maintenance import KEPT, UNTOUCHED, Maintenance
from services.app.models import holdings
from services.app.models.tables import ModelFileRow
from shared.contracts.models import ModelFile
from shared.db.engine import Database
from shared.jobs.engine import EmbeddedEngine
from shared.objects.store import blob_key
from tests.services.app import rows
from tests.services.app.conftest import People


@pytest.fixture
def maintenance(app_context: AppContext) -> Maintenance:
    return Maintenance(
        app_context, EmbeddedEngine(app_context.database, app_context.ledger, app_context.jobs).claims.hold
    )


async def scalar(database: Database, statement: str, **values: object) -> object:
    async with database.statement() as connection:
        return (await connection.execute(text(statement), values)).scalar_one_or_none()


async def run(database: Database, statement: str, **values: object) -> None:
    async with database.statement() as connection:
        await connection.execute(text(statement), values)


async def test_idle_drafts_expire_and_fresh_ones_stay(
    maintenance: Maintenance, client: httpx.AsyncClient, people: People, database: Database
) -> None:
    ada = await people.add("member")
    first = {"workflow_total_steps": 6, "step_number": 1, "modality": "llm"}
    ids = []
    for _ in "ab":
        answer = await client.post("/models/local-model-workflow", json=first, headers=ada.headers)
        ids.append(answer.json()["workflow_id"])
    await run(
        database, "UPDATE platform.workflow SET updated_at = now() - interval '31 days' WHERE id = :id", id=ids[0]
    )
    await maintenance.round()
    shown = [(await client.get(f"/workflows/{one}", headers=ada.headers)).json()["status"] for one in ids]
    assert shown == ["cancelled", "in_progress"]


async def test_old_jobs_go_and_those_that_need_a_hand_stay(
    maintenance: Maintenance, people: People, database: Database
) -> None:
    project = await people.project("p")
    jobs = {state: rows.job(project, state) for state in ("succeeded", "cleanup_required", "running")}
    await rows.insert(database, *jobs.values())
    await run(database, "UPDATE jobs.job SET ended_at = now() - interval '91 days' WHERE state <> 'running'")
    await maintenance.round()
    states = await scalar(database, "SELECT array_agg(state ORDER BY state) FROM jobs.job")
    assert states == ["cleanup_required", "running"]


async def test_bytes_that_no_model_has_are_freed_and_what_an_import_has_claimed_stays(
    maintenance: Maintenance, app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    kept, claimed, unused = [
        await stored(app_context, tmp_path, content) for content in (b"kept", b"claimed", b"unused")
    ]
    model, importing = rows.model(), rows.model(state="importing")
    await rows.insert(database, model, importing, ModelFileRow(model_id=model.id, path="f", size=4, sha256=kept))
    async with database.transaction() as session:
        await holdings.claim(session, importing.id, [ModelFile(path="f", size=7, sha256=claimed)], None)
    await maintenance.round()
    there = [await app_context.objects.exists(blob_key(digest)) for digest in (kept, claimed, unused)]
    assert there == [True, True, False]


async def stored(context: AppContext, folder: Path, content: bytes) -> str:
    file = folder / uuid4().hex
    file.write_bytes(content)
    return (await context.objects.ingest(file)).key.rsplit("/", 1)[-1]


@pytest.mark.parametrize(
    ("state", "age", "stays"),
    [
        (None, UNTOUCHED / 2, True),  # an import may just be beginning
        (None, UNTOUCHED * 2, False),
        ("cancelled", UNTOUCHED * 2, False),
        ("running", UNTOUCHED * 2, True),
        ("failed", UNTOUCHED * 2, True),  # a retry goes on with it
        ("failed", KEPT * 2, False),
    ],
)
async def test_unfinished_downloads_stay_while_an_import_may_go_on_with_them(
    maintenance: Maintenance, app_context: AppContext, people: People, database: Database, state: str | None, age: float,
    stays: bool,
) -> None:  # fmt: skip
    if state is not None:
        await rows.insert(database, rows.job(await people.project("p"), state))
    folder = app_context.objects.scratch("download")
    (folder / "part").write_bytes(b"half")
    past = time.time() - age
    for path in (folder / "part", folder):
        os.utime(path, (past, past))
    await maintenance.round()
    assert folder.exists() is stays


async def test_one_duty_that_fails_keeps_none_of_the_others_from_being_done(
    maintenance: Maintenance, app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    unused = await stored(app_context, tmp_path, b"unused")
    await run(database, "ALTER TABLE platform.idempotency RENAME TO away")
    await maintenance.round()
    assert not await app_context.objects.exists(blob_key(unused))
