"""Models from a URL: one file, or an archive that is unpacked. The server and the archive are both hostile."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

import httpx

from services.model.sources.base import (
    PlannedFile,
    Progress,
    SourceContext,
    SourcePlan,
    check_space,
    check_token,
    check_total,
    disk_faults,
    files_of,
    onwards,
    store_manifest,
    with_files,
)
from services.model.sources.fetching.archives import archive_kind, unpack
from services.model.sources.fetching.download import Remote, download, whole_number
from services.model.sources.fetching.failures import outcome_of_failure
from services.model.sources.fetching.paths import name_from_url
from services.model.sources.fetching.statuses import outcome_of_status
from services.model.sources.fetching.workspace import Workspace, workspace
from shared.contracts.models import ImportSpec, Manifest, ModelFile, Source
from shared.jobs.outcomes import Permanent
from shared.security.addresses import AddressRefused, guarded_client
from shared.security.uris import InvalidUri, check_uri


class Url:
    """`https://host/path/model.gguf`, or `.zip`, `.tar`, `.tar.gz`, `.tgz`."""

    kind = Source.URL

    def check_uri(self, uri: str) -> None:
        check_uri(self.kind, uri)

    async def check(self, spec: ImportSpec, context: SourceContext) -> SourcePlan:
        try:
            self.check_uri(spec.uri)
        except InvalidUri as invalid:
            raise Permanent(invalid.code, invalid.message) from None
        check_token(context)
        headers = await _headers_of(spec.uri, context)
        size = whole_number(headers.get("content-length", ""))
        if size is not None:
            check_total(size, context)
            await check_space(size, context, here=size)
        name = name_from_url(urlsplit(spec.uri).path)
        plan = SourcePlan(
            source=self.kind,
            uri=spec.uri,
            total_bytes=size,
            file_count=1,
            etag=_etag(headers),
            archive=archive_kind(name),
        )
        # an announced size is only a hint: what arrives is counted
        return await with_files(plan, [PlannedFile(path=name)], spec.model_id, context)

    async def fetch(self, plan: SourcePlan, context: SourceContext, on_progress: Progress) -> Manifest:
        name = (await files_of(plan, context))[0].path
        with disk_faults():
            async with workspace(context, self.kind, plan.uri, plan.etag) as work:
                if plan.archive is None:
                    file = await work.done(name) or await _bring(name, plan, context, work, on_progress)
                    on_progress(file.size, file.size)
                    return await store_manifest([file], context)
                return await _bring_archive(name, plan, context, work, on_progress)


async def _bring(
    name: str, plan: SourcePlan, context: SourceContext, work: Workspace, on_progress: Progress
) -> ModelFile:
    target = work.file(name)
    size, sha256 = await _download(name, plan, context, work, on_progress)
    file = ModelFile(path=name, size=size, sha256=sha256)
    await context.claim([file], None)
    await context.objects.adopt(target, sha256)
    work.record(name, file)
    return file


async def _bring_archive(
    name: str, plan: SourcePlan, context: SourceContext, work: Workspace, on_progress: Progress
) -> Manifest:
    size, _ = await _download(name, plan, context, work, on_progress)
    files = await unpack(work.file(name), plan.archive or "", work.file("unpacked"), context)
    if not files:
        raise Permanent("no_model_files", "The archive holds no file.")
    on_progress(size, size)
    return await store_manifest(_below_one_folder(files), context)


async def _download(
    name: str, plan: SourcePlan, context: SourceContext, work: Workspace, on_progress: Progress
) -> tuple[int, str]:
    remote = Remote(url=plan.uri, limit=context.max_bytes, headers=_credential(plan.uri, context), etag=plan.etag)
    await check_space(plan.total_bytes or 0, context, here=plan.total_bytes or 0)
    async with guarded_client(context.policy) as client:
        got = await download(client, remote, work.file(name), onwards(on_progress, 0, plan.total_bytes))
    return got.size, got.sha256


async def _headers_of(uri: str, context: SourceContext) -> httpx.Headers:
    """The headers of the answer to a GET whose body is not read: signed URLs and simple servers refuse HEAD."""
    headers = {**_credential(uri, context), "Accept-Encoding": "identity"}
    async with guarded_client(context.policy) as client:
        try:
            async with client.stream("GET", uri, headers=headers) as response:
                if response.status_code != 200:
                    raise outcome_of_status(response.status_code, response.headers)
                return response.headers
        except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as error:
            raise outcome_of_failure(error) from None


def _etag(headers: httpx.Headers) -> str | None:
    etag = headers.get("etag", "")
    return etag if 0 < len(etag) <= 512 else None


def _credential(uri: str, context: SourceContext) -> dict[str, str]:
    if context.token is None:
        return {}
    if not uri.lower().startswith("https:") and not context.policy.allow_private:
        raise Permanent("credential_refused", "A credential is sent over https only.")
    return {"Authorization": f"Bearer {context.token}"}


def _below_one_folder(files: list[ModelFile]) -> list[ModelFile]:
    """Archives often wrap everything in one folder: its name is not part of the model."""
    tops = {PurePosixPath(file.path).parts[0] for file in files}
    if len(tops) != 1 or any("/" not in file.path for file in files):
        return files
    return [file.model_copy(update={"path": file.path.split("/", 1)[1]}) for file in files]
