"""Import a model: check that it may be had, bring its files, read what they say, store them."""

import asyncio
from pathlib import Path

import structlog
from pydantic import BaseModel

from services.model.jobs.tools import ModelTools
from services.model.metadata import integrity
from services.model.metadata.gguf import MAX_HEADER
from services.model.metadata.reader import read
from services.model.sources.base import SourceContext, SourcePlan
from services.model.sources.registry import source_for
from shared.contracts.models import ImportResult, ImportSpec, ModelMetadata
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.run import Run, Step
from shared.objects.store import blob_key
from shared.security.addresses import AddressPolicy
from shared.telemetry.traces import span

log = structlog.get_logger(__name__)

NETWORK = RetryPolicy(attempts=5, delay=1.0, max_delay=30.0, timeout=120.0)
BYTES = RetryPolicy(attempts=8, delay=1.0, max_delay=60.0, timeout=24 * 3600.0)


class Fetch(BaseModel):
    spec: ImportSpec
    plan: SourcePlan


class Fetched(BaseModel):
    """The files are in the store, under this manifest."""

    digest: str
    size: int
    files: int


class Described(BaseModel):
    spec: ImportSpec
    plan: SourcePlan
    fetched: Fetched
    metadata: ModelMetadata


@step("Check access", retry=NETWORK, weight=1)
async def validate_access(ctx: Step, spec: ImportSpec) -> SourcePlan:
    tools: ModelTools = ctx.tools
    ctx.progress(None, f"Asking {spec.source.value.replace('_', ' ')} for {spec.uri}")
    context = await _context(ctx, spec)
    with span("ask source", source=spec.source.value):
        plan = await source_for(spec.source).check(spec, context)
    if plan.total_bytes is not None:
        await tools.app.admit_bytes(ctx.job_id, spec.project_id, plan.total_bytes)
    return plan


@step("Download", retry=BYTES, weight=20)
async def download(ctx: Step, fetch: Fetch) -> Fetched:
    tools: ModelTools = ctx.tools

    def told(done: int, total: int | None) -> None:
        percent = 100 * done / total if total else None
        ctx.progress(percent, f"{_size(done)} of {_size(total)}" if total else _size(done))

    context = await _context(ctx, fetch.spec)
    with span("fetch files", source=fetch.spec.source.value):
        manifest = await source_for(fetch.spec.source).fetch(fetch.plan, context, told)
    await tools.app.admit_bytes(ctx.job_id, fetch.spec.project_id, manifest.size)
    return Fetched(digest=manifest.digest, size=manifest.size, files=len(manifest.files))


@step("Read the metadata", weight=1)
async def read_metadata(ctx: Step, fetched: Fetched) -> ModelMetadata:
    """What the files say: headers and configuration, none of the repository's code. Refuses what is no model."""
    tools: ModelTools = ctx.tools
    manifest = await tools.manifest(fetched.digest)
    async with tools.placed(manifest.files, head=MAX_HEADER) as places:
        files = [(file.path, place) for file, place in places]
        if fault := await asyncio.to_thread(integrity.fault, files):
            raise Permanent("model_file_damaged", fault)
        return await asyncio.to_thread(read, files)


@step("Store", weight=1)
async def store(ctx: Step, fetched: Fetched) -> Fetched:
    """Make sure that every file is there: another model's deletion may have come between."""
    tools: ModelTools = ctx.tools
    for file in (await tools.manifest(fetched.digest)).files:
        if not await tools.objects.exists(blob_key(file.sha256)):
            raise Retry("file_gone", f"{file.path} is no longer in the object store; import the model again.")
    return fetched


@step("Save", weight=1)
async def save(ctx: Step, described: Described) -> ImportResult:
    fetched = described.fetched
    return ImportResult(
        digest=fetched.digest, size=fetched.size, files=fetched.files, revision=described.plan.commit,
        metadata=described.metadata,
    )  # fmt: skip


@job("import_model", steps=[validate_access, download, read_metadata, store, save], slots=2, deadline=48 * 3600)
async def import_model(run: Run, spec: ImportSpec) -> ImportResult:
    plan = await run.step(validate_access, spec)
    fetched = await run.step(download, Fetch(spec=spec, plan=plan))
    metadata = await run.step(read_metadata, fetched)
    if metadata.license is None:
        metadata.license = plan.license
    fetched = await run.step(store, fetched)
    described = Described(spec=spec, plan=plan, fetched=fetched, metadata=metadata)
    result: ImportResult = await run.step(save, described)
    return result


async def _context(ctx: Step, spec: ImportSpec) -> SourceContext:
    tools: ModelTools = ctx.tools
    settings = tools.settings
    token = None
    if spec.credential_id is not None:
        token = (await tools.app.credential(ctx.job_id, spec.credential_id)).get("token")
    policy = AddressPolicy(settings.allow_private_addresses, frozenset(settings.trusted_hosts))
    return SourceContext(
        objects=tools.objects, policy=policy.trusting(settings.hf_endpoint), hf_endpoint=settings.hf_endpoint,
        roots=tuple(Path(root) for root in settings.model_roots), max_bytes=settings.max_model_bytes,
        claim=lambda files, manifest: tools.app.claim_files(ctx.job_id, spec.model_id, files, manifest), token=token,
    )  # fmt: skip


def _size(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
