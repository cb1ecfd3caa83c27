"""The data directory of an installation: private, used by one process at a time, and where everything is in it."""

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from shared.settings import Settings


class StartError(Exception):
    """Stepway cannot start; the text is a sentence for whoever started it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are. All below the data directory unless settings say otherwise."""

    root: Path
    postgres: Path
    objects: Path
    machine: Path  # this machine's workers and the files that they serve
    key: Path
    admin_key: Path

    @classmethod
    def of(cls, settings: Settings) -> "Places":
        root = settings.data_dir.expanduser().absolute()
        return cls(
            root=root,
            postgres=root / "postgres",
            objects=(settings.objects_dir or root / "objects").expanduser().absolute(),
            machine=(settings.machine_dir or root / "machine").expanduser().absolute(),
            key=(settings.key_file or root / "encryption.key").expanduser().absolute(),
            admin_key=root / "admin.key",
        )


class DataFolder:
    """Holds the directory's lock while the process lives."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock: int | None = None

    def open(self) -> None:
        root = self._places.root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = root.stat()
            if status.st_uid != os.geteuid():
                raise StartError(f"The data directory {root} belongs to another user.")
            if status.st_mode & 0o077:
                root.chmod(0o700)
            self._take_lock(root / "stepway.lock")
        except OSError as error:
            raise StartError(f"The data directory {root} cannot be used: {_why(error)}.") from error

    def _take_lock(self, path: Path) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            where = f" (process {holder})" if holder.isdigit() else ""
            raise StartError(f"Another Stepway{where} uses the data directory {self._places.root} already.") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._lock = handle

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return (error.strerror or type(error).__name__).lower()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    draft.replace(path)
