"""A large file into a bucket and back through the object store, against MinIO's own client `mc`, in turns.

The server runs on this machine beside both. An upload through the store also hashes the whole file, which `mc` does not.
Of downloads, the one that puts the bytes into a file is judged by `mc`, which does no more; the one that compares the
digest, as jobs do, by `mc` with the file hashed after it, and shown beside `mc` alone. MinIO writes past the page
cache, so each object is read once before it is timed: all read it from memory, and all end with the file in the page
cache, so none syncs. Who comes first changes from round to round. What is judged is the pair of runs in the middle, by
their ratio.
"""

import asyncio
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from shared.objects.durable import write_all
from shared.objects.fetching import fetch
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
from shared.objects.store import blob_key
from tests.bench.figures import Figure, Skipped
from tests.testbed.build import program
from tests.testbed.machine import missing
from tests.testbed.minio import PASSWORD, USER, Minio

MB = 1_000_000
AT_LEAST = 0.8
_Transfer = Callable[[], Awaitable[None]]
_PEERS = {"mc up": "mc", "mc down": "mc", "mc checked": "mc, then hashed"}


def run(quick: bool) -> list[Figure]:
    if lacking := missing("minio", "mc"):
        raise Skipped("; ".join(lacking))
    size, rounds = (200 * MB, 1) if quick else (1000 * MB, 7)
    times: list[dict[str, float]] = []
    server = Minio()
    try:
        with tempfile.TemporaryDirectory(prefix="stepway-bench-") as name:
            folder, place = Path(name), server.place()
            sha256 = _file(folder / "file", size)
            mc = _Mc(server, place.bucket)
            asyncio.run(_round(mc, place, folder, sha256, 0))  # memory and disk that are touched first are slow
            for number in range(rounds):
                times.append(asyncio.run(_round(mc, place, folder, sha256, number)))
    finally:
        server.close()
    at_least = None if quick else AT_LEAST
    return [
        _figure("upload", times, "up", "mc up", size, at_least),
        _figure("download", times, "down", "mc down", size, at_least),
        _figure("download, digest compared", times, "checked", "mc checked", size, at_least),
        _figure("download, digest compared", times, "checked", "mc down", size, None),
    ]


def _figure(
    what: str, times: list[dict[str, float]], which: str, peer: str, size: int, at_least: float | None
) -> Figure:
    ordered = sorted((seconds[peer] / seconds[which], size / MB / seconds[which]) for seconds in times)
    ratio, rate = ordered[len(ordered) // 2]
    spread = f"of {len(ordered)} pairs: {ordered[0][0]:.2f}, {ratio:.2f}, {ordered[-1][0]:.2f} at least, in the middle, at most"
    return Figure(
        f"{what} of {size / 1000 / MB:g} GB", rate, "MB/s", rate / ratio, f"MB/s {_PEERS[peer]}",
        at_least=at_least, note=spread,
    )  # fmt: skip


async def _round(mc: "_Mc", place: S3Place, folder: Path, sha256: str, number: int) -> dict[str, float]:
    """Seconds of each transfer."""
    store, key = S3Store(place, folder / "scratch"), blob_key(sha256)
    await store.prepare()
    given, out = folder / "given", folder / "out"
    given.hardlink_to(folder / "file")

    async def up() -> None:
        await store.adopt(given, sha256)

    async def down() -> None:
        with out.open("wb", buffering=0) as file:
            await store.pour(key, lambda data: write_all(file.fileno(), data))

    async def checked() -> None:
        await fetch(store, sha256, out)

    async def mc_up() -> None:
        await mc.copy(str(folder / "file"), mc.path("peer"))

    async def mc_down() -> None:
        await mc.copy(mc.path(key), str(out))

    async def mc_checked() -> None:
        await mc_down()
        await asyncio.to_thread(_sha256, out)

    seconds = await _in_turns({"up": up, "mc up": mc_up}, number, out)
    await store.pour(key, lambda data: None)  # from the disk into the page cache
    downloads: dict[str, _Transfer] = {"down": down, "mc down": mc_down, "checked": checked, "mc checked": mc_checked}
    seconds |= await _in_turns(downloads, number, out)
    await store.delete(key)
    await mc.run("rm", mc.path("peer"))
    return seconds


async def _in_turns(transfers: dict[str, _Transfer], number: int, out: Path) -> dict[str, float]:
    """Seconds of each. The number tells who is the first; none begins before the disk is done with what others left."""
    names = list(transfers)
    first = number % len(names)
    seconds = {}
    for name in names[first:] + names[:first]:
        os.sync()
        began = time.perf_counter()
        await transfers[name]()
        seconds[name] = time.perf_counter() - began
        out.unlink(missing_ok=True)
    return seconds


class _Mc:
    def __init__(self, server: Minio, bucket: str) -> None:
        self._bucket = bucket
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(server.data.parent),
            "MC_HOST_bench": f"http://{USER}:{PASSWORD}@127.0.0.1:{server.port}",
        }  # fmt: skip

    def path(self, name: str) -> str:
        return f"bench/{self._bucket}/{name}"

    async def copy(self, source: str, target: str) -> None:
        await self.run("cp", source, target)

    async def run(self, *arguments: str) -> None:
        command = [str(program("mc").path), "--quiet", *arguments]
        await asyncio.to_thread(subprocess.run, command, env=self._environment, check=True, stdout=subprocess.DEVNULL)


def _sha256(path: Path) -> str:
    """By the same library as the store's own, which is several times as fast as `sha256sum` on some machines."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(path: Path, size: int) -> str:
    """A file that no one can compress; its sha256."""
    digest, block = hashlib.sha256(), os.urandom(MB)
    with path.open("wb") as out:
        for number in range(size // MB):
            data = number.to_bytes(8, "big") + block[8:]
            digest.update(data)
            out.write(data)
    return digest.hexdigest()
