"""Objects are freed with the last model that uses them, and never under one that is about to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.models import holdings
from services.app.models.tables import ModelFileRow, ModelRow, ScanRow
from services.model.sources.base import SourceContext
from services.model.sources.disk import Disk
from shared.contracts.models import ImportSpec, ModelFile, Source
from shared.db.engine import Database
from shared.jobs.outcomes import Permanent
from shared.objects.store import blob_key, manifest_key
from shared.security.addresses import AddressPolicy
from tests.services.app import rows

CONTENT = b"weights"
FILE = ModelFile(path="model.gguf", size=len(CONTENT), sha256=sha256(CONTENT).hexdigest())
KEY = blob_key(FILE.sha256)
BLOCKED = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
               "(SELECT oid FROM pg_database WHERE datname = current_database())")  # fmt: skip


async def store(context: AppContext, folder: Path) -> None:
    file = folder / uuid4().hex
    file.write_bytes(CONTENT)
    await context.objects.adopt(file, FILE.sha256)


async def importing(database: Database) -> UUID:
    model = rows.model(state="importing")
    await rows.insert(database, model)
    return model.id


async def until_blocked(database: Database) -> None:
    async with asyncio.timeout(30), database.statement() as connection:
        while not await connection.scalar(BLOCKED):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(work: asyncio.Task[None]) -> AsyncIterator[None]:
    """Ends the task when the block fails; else waits for its end."""
    try:
        yield
        await work
    finally:
        work.cancel()


async def test_freeing_waits_for_a_claim_that_is_being_made_and_then_leaves_the_bytes(
    app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    await store(app_context, tmp_path)
    model_id = await importing(database)
    async with database.transaction() as session:
        await holdings.claim(session, model_id, [FILE], None)
        freeing = asyncio.create_task(holdings.free(app_context, [KEY]))
        await until_blocked(database)
    assert await freeing == 0
    assert await app_context.objects.exists(KEY)


async def test_a_claim_waits_for_a_freeing_and_then_sees_that_the_bytes_are_gone(
    app_context: AppContext, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(app_context, tmp_path)
    model_id = await importing(database)
    deleting, go_on = asyncio.Event(), asyncio.Event()
    delete = app_context.objects.delete

    async def slow(key: str) -> bool:
        deleting.set()
        await go_on.wait()
        return await delete(key)

    monkeypatch.setattr(app_context.objects, "delete", slow)

    async def claim() -> bool:
        async with database.transaction() as session:
            await holdings.claim(session, model_id, [FILE], None)
        return await app_context.objects.exists(KEY)

    freeing = asyncio.create_task(holdings.free(app_context, [KEY]))
    await deleting.wait()
    claiming = asyncio.create_task(claim())
    await until_blocked(database)
    go_on.set()
    assert await freeing == 1
    assert not await claiming


async def test_imports_of_bytes_that_are_being_freed_all_the_time_have_them_at_their_end(
    app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    """One deletion after the other of a model with the same bytes, while others import them."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(CONTENT)
    over = asyncio.Event()

    async def free() -> None:
        while not over.is_set():
            await holdings.free(app_context, [info.key async for info in app_context.objects.list("blobs/")])
            await holdings.free(app_context, [info.key async for info in app_context.objects.list("manifests/")])

    async def bring() -> None:
        model_id = await importing(database)

        async def claim(files: Sequence[ModelFile], manifest: str | None) -> None:
            async with database.transaction() as session:
                await holdings.claim(session, model_id, files, manifest)

        context = SourceContext(app_context.objects, AddressPolicy(), "http://127.0.0.1:9", (folder,), 2**30, claim)
        spec = ImportSpec(model_id=model_id, project_id=None, source=Source.DISK, uri=str(folder / "model.gguf"))
        manifest = await Disk().fetch(await Disk().check(spec, context), context, lambda done, total: None)
        assert await app_context.objects.exists(KEY)
        assert await app_context.objects.exists(manifest_key(manifest.digest))
        async with database.transaction() as session:  # and so it can be freed again
            await session.execute(text("UPDATE platform.model SET state = 'deleted' WHERE id = :id"), {"id": model_id})
            await holdings.release(session, model_id)

    freeing = asyncio.create_task(free())
    async with running(freeing):
        for _ in range(10):
            await asyncio.gather(*(bring() for _ in range(4)))
        over.set()
    await holdings.sweep(app_context)
    assert not await app_context.objects.exists(KEY)


async def test_a_model_takes_all_of_its_objects_along_unless_another_uses_them(
    app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    objects = app_context.objects
    await store(app_context, tmp_path)
    digest, scan_id = "ab" * 32, uuid4()
    first, second = (rows.model(digest=digest) for _ in "ab")
    scan = ScanRow(id=scan_id, model_id=first.id, job_id=uuid4(), status="safe", digest=digest)
    files = [ModelFileRow(model_id=one.id, path="f", size=FILE.size, sha256=FILE.sha256) for one in (first, second)]
    await rows.insert(database, first, second, scan, *files)
    shared = [KEY, manifest_key(digest)]
    own = [f"scans/{scan_id}.json", f"plans/{first.id}-{digest}.json"]
    for key in (*shared[1:], *own):
        await objects.put(key, b"{}")

    async def delete(model: ModelRow) -> list[bool]:
        async with database.transaction() as session:
            await session.execute(text("UPDATE platform.model SET state = 'deleted' WHERE id = :id"), {"id": model.id})
            keys = await holdings.release(session, model.id)
        await holdings.free_model(app_context, model.id, keys)
        return [await objects.exists(key) for key in (*shared, *own)]

    assert await delete(first) == [True, True, False, False]
    assert await delete(second) == [False, False, False, False]


@pytest.mark.parametrize(
    ("state", "stays"), [("importing", True), ("failed", True), ("active", False), ("deleted", False)]
)
async def test_a_plan_stays_while_its_import_may_go_on(
    app_context: AppContext, database: Database, state: str, stays: bool
) -> None:
    model = rows.model(state=state)
    await rows.insert(database, model)
    key, foreign = f"plans/{model.id}-{'ab' * 32}.json", "plans/of-another-form.json"
    for name in (key, foreign):
        await app_context.objects.put(name, b"{}")
    await holdings.sweep(app_context)
    assert [await app_context.objects.exists(name) for name in (key, foreign)] == [stays, True]


async def test_a_failed_import_keeps_what_a_retry_goes_on_with(
    app_context: AppContext, database: Database, tmp_path: Path
) -> None:
    await store(app_context, tmp_path)
    model_id = await importing(database)
    async with database.transaction() as session:
        await holdings.claim(session, model_id, [FILE], None)
        await session.execute(text("UPDATE platform.model SET state = 'failed' WHERE id = :id"), {"id": model_id})
    await holdings.sweep(app_context)
    assert await app_context.objects.exists(KEY)


@pytest.mark.parametrize("state", ["active", "failed", "deleted"])
async def test_who_imports_no_more_claims_nothing(app_context: AppContext, database: Database, state: str) -> None:
    model = rows.model(state=state)
    await rows.insert(database, model)
    with pytest.raises(Permanent) as refused:
        async with database.transaction() as session:
            await holdings.claim(session, model.id, [FILE], None)
    assert refused.value.code == "model_gone"
