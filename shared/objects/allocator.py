"""One setting of the C library's allocator that downloads need; whoever receives large bodies makes it.

An HTTP client hands on a large body in pieces of some hundred KiB, each copied several times on its way. By default
glibc gives the memory of each such piece back to the system and asks for it again with the next, page by page: that
costs more than receiving the bytes.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
KEPT = 16 * 1024 * 1024  # bytes at the heap's end that stay with the process once they are free
LARGE = 2 * 1024 * 1024  # bytes from which a piece gets a mapping of its own, which goes back when it is freed


@cache
def keep_freed_memory() -> bool:
    """For the whole process; whether the C library knows of it (glibc does, others need not)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_THRESHOLD, LARGE))
