"""What is freed between the pieces of a body stays with the process, where the C library has such a setting."""

import platform
import resource

import pytest

from shared.objects.allocator import keep_freed_memory

PIECE = 300_000  # bytes, about what a client reads at a time


def _faults() -> int:
    """Pages that a hundred rounds of pieces cost."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(100):
        pieces = [bytes(PIECE) for _ in range(4)]
        del pieces
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_pieces_do_not_ask_the_system_for_their_memory_each_time() -> None:
    assert keep_freed_memory()
    _faults()  # the heap grows once
    pages = 100 * 4 * PIECE // resource.getpagesize()
    assert _faults() < pages / 4
