"""Models from a Hugging Face hub: the repository is pinned to a commit at the check, its files verified one by one."""

from functools import partial
from urllib.parse import quote

import httpx
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from pydantic import ValidationError

from services.model.sources.base import (
    PlannedFile,
    Progress,
    SourceContext,
    SourcePlan,
    Tally,
    at_a_time,
    check_space,
    check_token,
    check_total,
    disk_faults,
    files_of,
    store_manifest,
    with_files,
)
from services.model.sources.fetching.download import Remote, StatusOutcome, download
from services.model.sources.fetching.failures import outcome_of_failure
from services.model.sources.fetching.paths import PathSet, UnsafePath
from services.model.sources.fetching.workspace import Workspace, workspace
from services.model.sources.hub.api import model_info, outcome_of_hub
from services.model.sources.hub.choice import choose
from shared.contracts.models import ImportSpec, Manifest, ModelFile, Source
from shared.jobs.outcomes import Permanent
from shared.objects import InvalidKey, ObjectNotFound, blob_key
from shared.security.addresses import AddressPolicy, AddressRefused, guarded_client
from shared.security.uris import InvalidUri, check_revision, check_uri, parse_hub_uri

_AT_A_TIME = 4  # files; small ones wait for the network and the disk most of their time


class HuggingFace:
    """`organisation/name`, with `:QUANTISATION` or `/file.gguf` to choose among GGUF files."""

    kind = Source.HUGGING_FACE

    def check_uri(self, uri: str) -> None:
        check_uri(self.kind, uri)

    async def check(self, spec: ImportSpec, context: SourceContext) -> SourcePlan:
        try:
            self.check_uri(spec.uri)
            check_revision(spec.revision)
            wanted = parse_hub_uri(spec.uri)
        except InvalidUri as invalid:
            raise Permanent(invalid.code, invalid.message) from None
        check_token(context)
        info = await model_info(context.hf_endpoint, wanted.repository, spec.revision, context.token, _policy(context))
        if not info.sha:
            raise Permanent("model_not_found", "The hub does not tell the commit of this model.")
        siblings = {item.rfilename: item for item in info.siblings or []}
        paths = choose(list(siblings), wanted, context.engine)
        files = _plan_files([siblings[path] for path in paths])
        total = sum(file.size or 0 for file in files)
        check_total(total, context)
        await check_space(total, context)
        plan = SourcePlan(
            source=self.kind,
            uri=spec.uri,
            revision=spec.revision,
            commit=info.sha,
            gated=bool(info.gated),
            license=_license(info),
            total_bytes=total,
            file_count=len(files),
        )
        await _check_access(plan, files, context)
        return await with_files(plan, files, spec.model_id, context)

    async def fetch(self, plan: SourcePlan, context: SourceContext, on_progress: Progress) -> Manifest:
        files = await files_of(plan, context)
        with disk_faults():
            async with (
                workspace(context, self.kind, context.hf_endpoint, plan.uri, plan.commit) as work,
                guarded_client(_policy(context)) as client,
            ):
                named = [ModelFile(path=f.path, size=f.size or 0, sha256=f.sha256) for f in files if f.sha256]
                await context.claim(named, None)
                known = {file.path: await _known(file, work, context) for file in files}
                missing = sorted(file.size or 0 for file in files if known[file.path] is None)
                await check_space(sum(missing), context, here=sum(missing[-_AT_A_TIME:]))
                tally = Tally(on_progress, plan.total_bytes)
                for brought in filter(None, known.values()):
                    tally.at(brought.path, brought.size)

                async def bring(file: PlannedFile) -> ModelFile:
                    return known[file.path] or await _bring(file, plan, context, work, client, tally)

                return await store_manifest(await at_a_time(_AT_A_TIME, bring, files), context)


async def _bring(
    file: PlannedFile,
    plan: SourcePlan,
    context: SourceContext,
    work: Workspace,
    client: httpx.AsyncClient,
    tally: Tally,
) -> ModelFile:
    remote = Remote(
        url=_url(plan, file.path, context),
        limit=context.max_bytes,
        headers=_headers(context),
        size=file.size,
        sha256=file.sha256,
        git_oid=file.git_oid,
        outcome=_outcome(context),
    )
    target = work.file(file.path)
    got = await download(client, remote, target, partial(tally.at, file.path))
    brought = ModelFile(path=file.path, size=got.size, sha256=got.sha256)
    await context.claim([brought], None)
    await context.objects.adopt(target, got.sha256)
    work.record(file.path, brought)
    return brought


async def _known(file: PlannedFile, work: Workspace, context: SourceContext) -> ModelFile | None:
    """The file, if its bytes are stored already. Its digest, where the hub tells it, has been claimed."""
    if file.sha256 is None:
        return await work.done(file.path)
    try:
        size = (await context.objects.stat(blob_key(file.sha256))).size
    except ObjectNotFound:
        return None
    return ModelFile(path=file.path, size=size, sha256=file.sha256)


async def _check_access(plan: SourcePlan, files: list[PlannedFile], context: SourceContext) -> None:
    """Ask for a file without taking it: the description of a gated model is public, its files are not."""
    largest = max(files, key=lambda file: file.size or 0)
    async with guarded_client(_policy(context), follow_redirects=False) as client:
        try:
            response = await client.head(_url(plan, largest.path, context), headers=_headers(context))
        except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as error:
            raise outcome_of_failure(error) from None
    if response.status_code >= 400:
        raise _outcome(context)(response.status_code, response.headers)


def _planned(item: RepoSibling) -> PlannedFile:
    if item.lfs is not None:
        return PlannedFile(path=item.rfilename, size=item.lfs.size, sha256=item.lfs.sha256.lower())
    if item.size is None:
        raise Permanent("source_refused", "The hub does not tell the sizes of the files.")
    return PlannedFile(path=item.rfilename, size=item.size, git_oid=item.blob_id)


def _plan_files(items: list[RepoSibling]) -> list[PlannedFile]:
    paths = PathSet()
    files = []
    try:
        for item in items:
            paths.add(item.rfilename)
            file = _planned(item)
            if file.sha256 is not None:
                blob_key(file.sha256)
            files.append(file)
    except (UnsafePath, InvalidKey) as unsafe:
        raise Permanent("unsafe_path", f"The repository's list of files is not safe: {unsafe}.") from None
    except ValidationError:
        raise Permanent("source_refused", "The hub describes a file in a way that makes no sense.") from None
    return files


def _license(info: ModelInfo) -> str | None:
    card = info.card_data.get("license") if info.card_data else None
    if isinstance(card, list):
        card = next(iter(card), None)
    tagged = (tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:"))
    found = card if isinstance(card, str) else next(tagged, None)
    return found[:200] if found else None


def _policy(context: SourceContext) -> AddressPolicy:
    """The endpoint is the operator's choice; where it redirects to is not."""
    return context.policy.trusting(context.hf_endpoint)


def _headers(context: SourceContext) -> dict[str, str]:
    return {"Authorization": f"Bearer {context.token}"} if context.token else {}


def _url(plan: SourcePlan, path: str, context: SourceContext) -> str:
    repository = parse_hub_uri(plan.uri).repository
    return f"{context.hf_endpoint.rstrip('/')}/{repository}/resolve/{quote(plan.commit or '', safe='')}/{quote(path)}"


def _outcome(context: SourceContext) -> StatusOutcome:
    return partial(outcome_of_hub, credential=context.token is not None)
