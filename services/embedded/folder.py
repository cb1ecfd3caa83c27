"""The data directory of an installation: private, used by one process at a time, and where everything is in it."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from services.assembly.process import StartError, why
from shared.settings import Settings

LOCK = "stepway.lock"


class InUse(StartError):
    """Another process has the data directory."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are. All below the data directory unless settings say otherwise."""

    root: Path
    postgres: Path
    objects: Path
    machine: Path  # this machine's workers and the files that they serve
    key: Path
    admin_key: Path
    cluster_id: Path  # a copy of what `machine` says, for when that is lost
    restoring: Path  # is there while a restore is not finished

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
            cluster_id=root / "cluster-id",
            restoring=root / "restoring",
        )


class DataFolder:
    """Holds the directory's lock while the process lives."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock: int | None = None

    def open(self, *, for_restore: bool = False) -> None:
        """Make the directory if need be, and hold it. Raises StartError; `InUse` when another process holds it."""
        root = self._places.root
        try:
            make_private(root)
            if root.stat().st_uid != os.geteuid():
                raise StartError(f"The data directory {root} belongs to another user.")
            self._lock = self._take_lock(root / LOCK)
            if not for_restore and self._places.restoring.exists():
                self.close()
                raise StartError(f"A restore into {root} was cut off: empty the directory, and restore again.")
        except OSError as error:
            raise StartError(f"The data directory {root} cannot be used: {why(error)}.") from error

    def _take_lock(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            where = f" (process {holder})" if holder.isdigit() else ""
            raise InUse(f"Another Stepway{where} uses the data directory {self._places.root} already.") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        return handle

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class MachineUse:
    """Counts the processes that share this machine's workers, by a shared lock: whoever leaves last stops them."""

    def __init__(self, machine: Path) -> None:
        self._path = machine / "in-use"
        self._lock: int | None = None

    def begin(self) -> None:
        """Blocks for the seconds in which the last one stops the workers."""
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def is_last(self) -> bool:
        """Whether nobody else uses them; nobody begins to until `end`. Of two that ask at once, one is the last."""
        if self._lock is None:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def end(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def machine_cluster_id(places: Places) -> UUID:
    """The id of this machine as a cluster: kept with the workers, so that processes which share them are one cluster.

    Where the workers' folder was lost, the copy in the data directory still says which endpoints are this machine's.
    """
    make_private(places.machine)
    path = places.machine / "cluster-id"
    if not path.exists():
        known = places.cluster_id.read_text() if places.cluster_id.exists() else str(uuid4())
        write_private(path, known, keep=True)
    text = path.read_text()
    try:
        cluster_id = UUID(text.strip())
    except ValueError as error:
        raise StartError(f"The file {path} is damaged: it must hold the id of this machine.") from error
    if not places.cluster_id.exists() or places.cluster_id.read_text() != text:
        write_private(places.cluster_id, text)
    return cluster_id


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter; one that is there already becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        folder.chmod(0o700)


def write_private(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file that only its owner may read, whole or not at all. With `keep` a file that is there already stays."""
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not keep:
            draft.replace(path)
            return
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass
    finally:
        draft.unlink(missing_ok=True)
