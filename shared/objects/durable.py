"""File operations that survive a power cut, and the copy that hashes. Used by `directory` and by the model sources.

Everything here blocks: call it through `shared.objects.blocking.settled`.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

SLICE = 8 * 1024 * 1024  # bytes between two chances to stop
_BUFFER = 1024 * 1024
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path, root: Path) -> None:
    """Make `path` below `root`, with every new name durable."""
    missing = []
    while path != root and not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o755, exist_ok=True)
        sync_directory(folder.parent)


def write_whole(path: Path, data: bytes, temporary: Path) -> None:
    """Put `data` at `path`: a reader sees all of it or what was there before. `temporary` is on the same disk."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte at the descriptor's position."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write every byte at a place in the file; the descriptor's position stays."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def copy_hashing(source: int, target: int) -> Iterator[tuple[int, str]]:
    """Copy a file's bytes from one descriptor to another, in slices; yields the bytes so far and their hex sha256.

    The kernel copies where it can (on some file systems without moving a byte), and the copy is what is hashed: the
    digest is that of the stored bytes, whatever happens to the source. The last item is the whole file.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    offset = 0
    in_kernel = hasattr(os, "copy_file_range")
    while True:
        copied = 0
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, SLICE, offset, offset)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                in_kernel = False
        if not copied:
            # nothing copied is the end of the file, or a file system whose files the kernel cannot copy
            copied = _copy_slice(source, target, offset, buffer)
        if not copied:
            break
        end = offset + copied
        while offset < end:
            count = os.preadv(target, [buffer[: min(_BUFFER, end - offset)]], offset)
            if not count:
                raise OSError(errno.EIO, "the copy is shorter than what was written")
            digest.update(buffer[:count])
            offset += count
        yield offset, digest.hexdigest()
    if not offset:
        yield 0, digest.hexdigest()


def _copy_slice(source: int, target: int, offset: int, buffer: memoryview) -> int:
    copied = 0
    while copied < SLICE:
        count = os.preadv(source, [buffer], offset + copied)
        if not count:
            break
        write_at(target, buffer[:count], offset + copied)
        copied += count
    return copied
