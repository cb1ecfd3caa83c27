"""Which stored objects are still in use, and how those that are not are freed. `service` and `outcomes` call it.

| object | in use while |
|---|---|
| `blobs/…` | a `model_file` row names it (of a living model, or claimed by an import on its way), or a flow's `artifact` |
| `manifests/<digest>.json` | it is the digest of a model that is not deleted |
| `plans/<model>-….json` | the model's import runs, or has failed and may be retried |
| `scans/<scan>.json` | the model of the scan is not deleted |

An import claims an object before it relies on it: the row that names it is committed under the key's lock, and only then
does the import look whether the object is there. Freeing takes the same lock, looks at the rows again and deletes the
object before it lets go. So either the claim came first and the object stays, or the object went first, and the import
finds it gone and brings it anew.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.flows.tables import ArtifactRow
from services.app.models import repository
from services.app.models.tables import ModelFileRow, ModelRow, ScanRow
from shared.contracts.models import ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects.store import blob_key, manifest_key

log = structlog.get_logger(__name__)

T = TypeVar("T")

AT_ONCE = 50  # keys whose locks one transaction holds: locks are few, and claims wait while objects are deleted
_LOOKED_AT = 1000  # keys that one query of a sweep asks about

# Sorted, so that no two transactions wait for each other.
_LOCK = text("""SELECT pg_advisory_xact_lock(lock) FROM (
    SELECT DISTINCT hashtextextended(key, 0) AS lock FROM unnest(CAST(:keys AS text[])) key ORDER BY 1) locks""")


def portions(items: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """At least one, which may be empty."""
    return (items[start : start + size] for start in range(0, max(1, len(items)), size))


async def claim(session: AsyncSession, model_id: UUID, files: Sequence[ModelFile], manifest: str | None) -> None:
    """Name what an import is about to use: at most `AT_ONCE` files, and the manifest's digest. Holds once committed."""
    model = await repository.get(session, model_id, lock=True)
    if model is None or model.state != "importing":
        raise Permanent("model_gone", "The model is not being imported any more.")
    await lock(session, [*(blob_key(file.sha256) for file in files), *([manifest_key(manifest)] if manifest else [])])
    if files:
        rows = [{"model_id": model_id, "path": f.path, "size": f.size, "sha256": f.sha256} for f in files]
        claimed = insert(ModelFileRow).values(rows)
        renewed = {"size": claimed.excluded.size, "sha256": claimed.excluded.sha256}
        await session.execute(claimed.on_conflict_do_update(index_elements=["model_id", "path"], set_=renewed))
    if manifest:
        model.digest = manifest


async def release(session: AsyncSession, model_id: UUID) -> list[str]:
    """Forget what a model has; returns the keys of what may be free once this is committed."""
    gone = delete(ModelFileRow).where(ModelFileRow.model_id == model_id).returning(ModelFileRow.sha256)
    blobs = [blob_key(sha256) for sha256 in (await session.execute(gone)).scalars()]
    digest = await session.scalar(select(ModelRow.digest).where(ModelRow.id == model_id))
    scans = (await session.execute(select(ScanRow.id).where(ScanRow.model_id == model_id))).scalars()
    return [*blobs, *([manifest_key(digest)] if digest else []), *(f"scans/{scan}.json" for scan in scans)]


async def free(context: AppContext, keys: Sequence[str]) -> int:
    """Delete the objects that nothing uses, of those given; how many went."""
    freed = 0
    for some in portions(sorted(set(keys))):
        async with context.database.transaction() as session:
            await lock(session, some)
            for key in await unused(session, some):
                freed += await context.objects.delete(key)
    return freed


async def free_model(context: AppContext, model_id: UUID, keys: Sequence[str]) -> None:
    """Free what `release` gave back, and the plan of the model's import."""
    plans = [info.key async for info in context.objects.list(f"plans/{model_id}-")]
    await free(context, [*keys, *plans])


async def sweep(context: AppContext) -> int:
    """Free everything that nothing uses: what an import left that was cancelled, or a deletion that was cut short."""
    freed = 0
    for prefix in _USED:
        async for some in _listed(context, prefix):
            async with context.database.transaction() as session:
                candidates = await unused(session, some)
            freed += await free(context, candidates)
    if freed:
        log.info("objects_freed", count=freed)
    return freed


async def unused(session: AsyncSession, keys: Sequence[str]) -> list[str]:
    """The keys that no row names. A key of an unknown form is somebody's, not ours to judge."""
    found: list[str] = []
    for prefix, (name_of, used) in _USED.items():
        names = {key: name_of(key.removeprefix(prefix)) for key in keys if key.startswith(prefix)}
        known = {key: name for key, name in names.items() if name is not None}
        if known:
            taken = await used(session, set(known.values()))
            found += [key for key, name in known.items() if name not in taken]
    return found


async def lock(session: AsyncSession, keys: Sequence[str]) -> None:
    """Of at most `AT_ONCE` objects: nothing frees them, or claims them, until the transaction has ended."""
    await session.execute(_LOCK, {"keys": list(keys)})


async def _listed(context: AppContext, prefix: str) -> AsyncIterator[list[str]]:
    some: list[str] = []
    async for info in context.objects.list(prefix):
        some.append(info.key)
        if len(some) == _LOOKED_AT:
            yield some
            some = []
    if some:
        yield some


# ---- what a key names, and who uses it


async def _blobs_used(session: AsyncSession, digests: set[str]) -> set[str]:
    of_models = select(ModelFileRow.sha256).where(ModelFileRow.sha256.in_(digests))
    of_flows = select(ArtifactRow.sha256).where(ArtifactRow.sha256.in_(digests))
    return set((await session.execute(of_models.union(of_flows))).scalars())


async def _manifests_used(session: AsyncSession, digests: set[str]) -> set[str]:
    statement = select(ModelRow.digest).where(ModelRow.digest.in_(digests), ModelRow.state != "deleted")
    return {digest for digest in (await session.execute(statement)).scalars() if digest}


async def _plans_used(session: AsyncSession, models: set[str]) -> set[str]:
    wanted = select(ModelRow.id).where(ModelRow.id.in_(map(UUID, models)), ModelRow.state.in_(["importing", "failed"]))
    return {str(model) for model in (await session.execute(wanted)).scalars()}


async def _scans_used(session: AsyncSession, scans: set[str]) -> set[str]:
    living = select(ModelRow.id).where(ModelRow.id == ScanRow.model_id, ModelRow.state != "deleted").exists()
    found = await session.execute(select(ScanRow.id).where(ScanRow.id.in_(map(UUID, scans)), living))
    return {str(scan) for scan in found.scalars()}


def _digest_of(rest: str) -> str | None:
    return rest.rsplit("/", 1)[-1].removesuffix(".json")


def _id_of(rest: str) -> str | None:
    try:
        return str(UUID(rest[:36]))
    except ValueError:
        return None


_Used = Callable[[AsyncSession, set[str]], Awaitable[set[str]]]
_USED: dict[str, tuple[Callable[[str], str | None], _Used]] = {
    "blobs/": (_digest_of, _blobs_used),
    "manifests/": (_digest_of, _manifests_used),
    "plans/": (_id_of, _plans_used),
    "scans/": (_id_of, _scans_used),
}
