"""Models from this machine's disk: only below the folders that the operator configured, after resolving every link."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from services.model.sources.base import (
    MAX_FILES,
    PlannedFile,
    Progress,
    SourceContext,
    SourcePlan,
    check_space,
    check_total,
    disk_faults,
    files_of,
    identity_of,
    onwards,
    store_manifest,
    with_files,
)
from services.model.sources.fetching.paths import MAX_DEPTH, PathSet, UnsafePath, safe_path
from services.model.sources.fetching.workspace import workspace
from shared.contracts.models import ImportSpec, Manifest, ModelFile, Source
from shared.jobs.outcomes import Permanent, Retry
from shared.objects import FileIdentity, SourceChanged
from shared.objects.blocking import settled
from shared.security.uris import InvalidUri, check_uri


class Disk:
    """The absolute path of a file or of a folder with all that is in it. Hidden files and folders are left out."""

    kind = Source.DISK

    def check_uri(self, uri: str) -> None:
        check_uri(self.kind, uri)

    async def check(self, spec: ImportSpec, context: SourceContext) -> SourcePlan:
        try:
            self.check_uri(spec.uri)
        except InvalidUri as invalid:
            raise Permanent(invalid.code, invalid.message) from None
        files = await settled(_look, Path(spec.uri), context.roots)
        total = sum(file.size or 0 for file in files)
        check_total(total, context)
        await check_space(total, context)
        plan = SourcePlan(source=self.kind, uri=spec.uri, total_bytes=total, file_count=len(files))
        return await with_files(plan, files, spec.model_id, context)

    async def fetch(self, plan: SourcePlan, context: SourceContext, on_progress: Progress) -> Manifest:
        files = await files_of(plan, context)
        stored: list[ModelFile] = []
        done = 0
        with disk_faults():
            async with workspace(context, self.kind, plan.uri) as work:
                for file in files:
                    # the journal's name holds the identity: a file that has changed since is another one
                    name = f"{file.path}\0{file.identity}"
                    brought = await work.done(name)
                    if brought is None:
                        brought = await _bring(file, context, onwards(on_progress, done, plan.total_bytes))
                        work.record(name, brought)
                    stored.append(brought)
                    done += brought.size
                    on_progress(done, plan.total_bytes)
                return await store_manifest(stored, context)


async def _bring(file: PlannedFile, context: SourceContext, on_bytes: Callable[[int], None]) -> ModelFile:
    source = Path(file.origin or "")
    try:
        while True:
            await settled(_resolved, source, context.roots)
            info = await context.objects.ingest(source, expect=identity_of(file), on_bytes=on_bytes)
            stored = ModelFile(path=file.path, size=info.size, sha256=info.key.rsplit("/", 1)[-1])
            await context.claim([stored], None)
            # freed before the claim: what is stored from now on stays
            if await context.objects.exists(info.key):
                return stored
    except SourceChanged:
        raise Permanent("source_changed", f"The file {file.path} has changed since it was checked.") from None
    except FileNotFoundError:
        raise Permanent("source_changed", f"The file {file.path} has gone since it was checked.") from None
    except PermissionError:
        raise Permanent("source_refused", f"The file {file.path} may not be read by this service.") from None


def _look(path: Path, roots: tuple[Path, ...]) -> list[PlannedFile]:
    """Every file of the model, sorted by path. Raises `Permanent`."""
    if not roots:
        raise Permanent("outside_roots", "No folder is configured from which models may be added.")
    start = _resolved(path, roots)
    try:
        status = start.stat()
        if stat.S_ISDIR(status.st_mode):
            found = list(_walk(start, "", roots, frozenset()))
        else:
            found = [_planned(path.name, start, status)]
        names = PathSet()
        for file in found:
            names.add(file.path)
    except UnsafePath as unsafe:
        raise Permanent("unsafe_path", f"The folder has names that a model cannot have: {unsafe}.") from None
    except PermissionError:
        raise Permanent("source_refused", "This service may not read everything at the path.") from None
    except FileNotFoundError:
        raise Permanent("source_changed", "Something at the path went away while it was looked at.") from None
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Retry("source_unavailable", f"The path cannot be read: {why}.") from None
    return sorted(found, key=lambda file: file.path)


def _walk(
    folder: Path, prefix: str, roots: tuple[Path, ...], above: frozenset[tuple[int, int]]
) -> Iterator[PlannedFile]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above or len(above) >= MAX_DEPTH:
        raise Permanent("unsafe_path", "The folder contains itself through a link, or is too deep.")
    above = above | {(status.st_dev, status.st_ino)}
    count = 0
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        if entry.name.startswith("."):
            continue
        place = _resolved(Path(entry.path), roots)
        inner = place.stat()
        if stat.S_ISDIR(inner.st_mode):
            found: Iterator[PlannedFile] = _walk(place, f"{prefix}{entry.name}/", roots, above)
        else:
            found = iter([_planned(f"{prefix}{entry.name}", place, inner)])
        for file in found:
            count += 1
            if count > MAX_FILES:
                raise Permanent("too_many_files", f"The folder has more than {MAX_FILES} files.")
            yield file


def _planned(path: str, place: Path, status: os.stat_result) -> PlannedFile:
    if not stat.S_ISREG(status.st_mode):
        raise Permanent("not_a_regular_file", f"{path} is not a regular file.")
    safe_path(path)  # a name that is no text could not even be planned
    seen = FileIdentity.of(status)
    identity = (seen.device, seen.inode, seen.size, seen.modified_ns)
    return PlannedFile(path=path, size=status.st_size, origin=str(place), identity=identity)


def _resolved(path: Path, roots: tuple[Path, ...]) -> Path:
    """The path without links, when it exists below a root. What is outside and what is not there look the same."""
    try:
        place = path.resolve(strict=True)
    except (OSError, RuntimeError):
        place = None
    if place is None or not any(place.is_relative_to(root.resolve()) for root in roots):
        raise Permanent("outside_roots", "There is nothing at this path inside the configured folders.")
    return place
