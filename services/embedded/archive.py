"""The file of a backup: a tar archive whose last member, `manifest.json`, lists every other with its size and sha256.

    database.dump, encryption.key, admin.key, cluster-id, objects/<key>…, manifest.json

The manifest comes last because only then all sizes and digests are known; an archive that was cut short has none. What
is read is not trusted: only these names, only regular files, nothing twice, each checked against the manifest.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from services.assembly.process import StartError, why
from shared.objects.store import InvalidKey, checked_key

FORMAT = 1
MANIFEST, DUMP, KEY, ADMIN_KEY, CLUSTER_ID, OBJECTS = (
    "manifest.json", "database.dump", "encryption.key", "admin.key", "cluster-id", "objects/",
)  # fmt: skip
NEEDED = {DUMP, KEY}
CHUNK = 1024 * 1024
MAX_MANIFEST = 512 * 1024**2  # bytes: some millions of objects


class _Hashing(io.RawIOBase):
    """Reads from a file and digests what goes through."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


class ArchiveWriter:
    """Writes `path` (0600), which appears only when `finish` has been called: use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._files: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        if os.path.lexists(self._path):
            raise StartError(f"{self._path} is there already: a backup replaces nothing.")
        try:
            self._part.unlink(missing_ok=True)
            handle = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"The backup {self._path} cannot be written: {why(error)}.") from error
        self._out = os.fdopen(handle, "wb")
        self._tar = tarfile.open(fileobj=self._out, mode="w|", format=tarfile.PAX_FORMAT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()
        self._part.unlink(missing_ok=True)

    def add(self, name: str, source: Path) -> None:
        with source.open("rb") as file:
            reader = _Hashing(file)
            size = os.fstat(file.fileno()).st_size
            self._tar.addfile(_member(name, size), reader)
        self._files.append({"name": name, "size": size, "sha256": reader.digest.hexdigest()})

    def finish(self, about: dict[str, Any]) -> int:
        """Write the manifest and give the archive its name. Returns its size in bytes."""
        content = json.dumps({"format": "stepway-backup", "version": FORMAT, **about, "files": self._files}).encode()
        self._tar.addfile(_member(MANIFEST, len(content)), io.BytesIO(content))
        self._tar.close()
        self._out.flush()
        os.fsync(self._out.fileno())
        size = os.fstat(self._out.fileno()).st_size
        self._part.replace(self._path)
        return size


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def unpack(archive: Path, place: Callable[[str], Path]) -> dict[str, Any]:
    """Put every member where `place` says, and return the manifest once all is found to be as it lists.

    Raises StartError: no backup, damaged, cut short, or with something in it that a backup has not.
    """
    found: dict[str, tuple[int, str]] = {}
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(archive, mode="r|") as tar:
            for member in tar:
                if manifest is not None:
                    raise StartError(f"{archive} has something after its manifest: it is not a backup of Stepway.")
                if member.name == MANIFEST and member.isreg() and member.size <= MAX_MANIFEST:
                    manifest = _manifest(archive, _opened(tar, member).read())
                    continue
                _check(archive, member, found)
                mode = 0o400 if member.name.startswith(f"{OBJECTS}blobs/") else 0o600
                found[member.name] = (member.size, _extract(_opened(tar, member), place(member.name), mode))
    except (tarfile.TarError, EOFError) as error:
        raise StartError(f"{archive} is damaged, or is not a backup of Stepway.") from error
    if manifest is None:
        raise StartError(f"{archive} was cut short: its manifest is missing.")
    if found != {file["name"]: (file["size"], file["sha256"]) for file in manifest["files"]}:
        raise StartError(f"{archive} is damaged: its content is not what its manifest lists.")
    if lacking := NEEDED - found.keys():
        raise StartError(f"{archive} lacks {', '.join(sorted(lacking))}.")
    return manifest


def _check(archive: Path, member: tarfile.TarInfo, found: dict[str, tuple[int, str]]) -> None:
    known = member.name in (DUMP, KEY, ADMIN_KEY, CLUSTER_ID)
    if member.name.startswith(OBJECTS):
        try:
            known = bool(checked_key(member.name.removeprefix(OBJECTS)))
        except InvalidKey:
            known = False
    if not known or not member.isreg() or member.name in found:
        raise StartError(f"{archive} holds something that a backup of Stepway does not: {member.name[:100]!r}.")


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError(member.name)
    return file  # type: ignore[return-value]  # typeshed: IO[bytes]


def _extract(source: BinaryIO, target: Path, mode: int) -> str:
    digest = hashlib.sha256()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as out:
        while data := source.read(CHUNK):
            digest.update(data)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _manifest(archive: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        sound = manifest["format"] == "stepway-backup" and all(
            isinstance(file["name"], str) and isinstance(file["size"], int) and isinstance(file["sha256"], str)
            for file in manifest["files"]
        )
        version = manifest["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        sound, version, manifest = False, None, {}
    if not sound:
        raise StartError(f"{archive} is not a backup of Stepway.")
    if version != FORMAT:
        raise StartError(f"{archive} is a backup of format {version}, which this version does not know.")
    return dict(manifest)
