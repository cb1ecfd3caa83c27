"""A large file into a bucket and back through the object store, against MinIO's own client `mc`, in turns.

The server runs on this machine beside both. An upload through the store also hashes the whole file, which `mc` does not.
Of downloads, the one that does what `mc` does (the bytes into a file) is judged; the one that compares the digest, as jobs
do, is shown beside it. All end with the file in the page cache, so none syncs. What is judged is the pair of runs in the
middle, by their ratio.
"""

import asyncio
import hashlib
import os
import subprocess
import tempfile
import time
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


def run(quick: bool) -> list[Figure]:
    if lacking := missing("minio", "mc"):
        raise Skipped("; ".join(lacking))
    size, rounds = (200 * MB, 1) if quick else (1000 * MB, 3)
    up: list[tuple[float, float]] = []
    down: list[tuple[float, float]] = []
    checked: list[tuple[float, float]] = []
    server = Minio()
    try:
        with tempfile.TemporaryDirectory(prefix="stepway-bench-") as name:
            folder, place = Path(name), server.place()
            sha256 = _file(folder / "file", size)
            mc = _Mc(server, place.bucket)
            _round(mc, place, folder, sha256)  # memory and disk that are touched first are slow
            for _ in range(rounds):
                ours, peer = _round(mc, place, folder, sha256)
                up.append((peer[0] / ours[0], size / MB / ours[0]))
                down.append((peer[1] / ours[1], size / MB / ours[1]))
                checked.append((peer[1] / ours[2], size / MB / ours[2]))
    finally:
        server.close()
    return [
        _figure("upload", up, size, None if quick else AT_LEAST),
        _figure("download", down, size, None if quick else AT_LEAST),
        _figure("download, digest compared", checked, size, None),
    ]


def _figure(what: str, pairs: list[tuple[float, float]], size: int, at_least: float | None) -> Figure:
    ordered = sorted(pairs)
    ratio, rate = ordered[len(ordered) // 2]
    spread = f"of {len(ordered)} pairs: {ordered[0][0]:.2f}, {ratio:.2f}, {ordered[-1][0]:.2f} at least, in the middle, at most"
    return Figure(
        f"{what} of {size / 1000 / MB:g} GB", rate, "MB/s", rate / ratio, "MB/s mc",
        at_least=at_least, note=spread,
    )  # fmt: skip


def _round(
    mc: "_Mc", place: S3Place, folder: Path, sha256: str
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Seconds up and down, of the store and of mc."""
    peer = mc.up(folder / "file"), mc.down(folder / "out")
    return asyncio.run(_ours(place, folder, sha256)), peer


async def _ours(place: S3Place, folder: Path, sha256: str) -> tuple[float, float, float]:
    """Seconds up, down, and down with the digest compared."""
    store = S3Store(place, folder / "scratch")
    await store.prepare()
    given = folder / "given"
    given.hardlink_to(folder / "file")
    began = _quiet()
    await store.adopt(given, sha256)
    up = time.perf_counter() - began
    began = _quiet()
    with (folder / "out").open("wb", buffering=0) as out:
        await store.pour(blob_key(sha256), lambda data: write_all(out.fileno(), data))
    down = time.perf_counter() - began
    (folder / "out").unlink()
    began = _quiet()
    await fetch(store, sha256, folder / "out")
    checked = time.perf_counter() - began
    (folder / "out").unlink()
    await store.delete(blob_key(sha256))
    return up, down, checked


class _Mc:
    def __init__(self, server: Minio, bucket: str) -> None:
        self._bucket = bucket
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(server.data.parent),
            "MC_HOST_bench": f"http://{USER}:{PASSWORD}@127.0.0.1:{server.port}",
        }  # fmt: skip

    def up(self, file: Path) -> float:
        return self._run("cp", str(file), f"bench/{self._bucket}/peer")

    def down(self, file: Path) -> float:
        seconds = self._run("cp", f"bench/{self._bucket}/peer", str(file))
        file.unlink()
        self._run("rm", f"bench/{self._bucket}/peer")
        return seconds

    def _run(self, *arguments: str) -> float:
        began = _quiet()
        command = [str(program("mc").path), "--quiet", *arguments]
        subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def _quiet() -> float:
    """When a transfer begins: not before the disk is done with what the one before has left to be written."""
    os.sync()
    return time.perf_counter()


def _file(path: Path, size: int) -> str:
    """A file that no one can compress; its sha256."""
    digest, block = hashlib.sha256(), os.urandom(MB)
    with path.open("wb") as out:
        for number in range(size // MB):
            data = number.to_bytes(8, "big") + block[8:]
            digest.update(data)
            out.write(data)
    return digest.hexdigest()
