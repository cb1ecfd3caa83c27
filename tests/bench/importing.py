"""A large file by URL through the wizard and its job, against a plain download with sha256 and fsync, in turns.

The file comes from a process of its own on this machine, so the network costs the least that it can. The plain download
ends with an fsync of its file, for an import promises that its bytes are on the disk when it has succeeded. What is
judged is the pair of runs in the middle, by their ratio: a machine that others use as well slows one of a pair at times.
"""

import hashlib
import http.client
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path

from tests.bench.client import in_process
from tests.bench.figures import Figure
from tests.bench.files import MB, safetensors
from tests.bench.memory import of_service
from tests.bench.server import Stepway
from tests.serving import FileServer

ALLOWED_MB = 150


def run(quick: bool) -> list[Figure]:
    size, rounds = (400 * MB, 1) if quick else (2000 * MB, 5)
    ours: list[float] = []
    plain: list[float] = []
    peak = 0.0
    with Stepway(STEPWAY_ALLOW_PRIVATE_ADDRESSES="true") as stepway:
        path = safetensors(stepway.root / "model.safetensors", size)
        with _served(path) as port:
            target = stepway.root / "plain"
            in_process(download, port, str(target))  # memory that a virtual machine touches first is slow
            target.unlink()
            for number in range(rounds):
                os.sync()
                plain.append(in_process(download, port, str(target)))
                target.unlink()
                os.sync()
                seconds, more = _import(
                    stepway, f"http://127.0.0.1:{port}/{number}/model.safetensors", f"model {number}"
                )
                ours.append(seconds)
                peak = max(peak, more)
    ratios = sorted((peer / own, own, peer) for own, peer in zip(ours, plain, strict=True))
    middle, own, peer = ratios[rounds // 2]
    spread = (
        f"of {rounds} pairs: {ratios[0][0]:.2f}, {middle:.2f}, {ratios[-1][0]:.2f} at least, in the middle, at most"
    )
    name = f"import of {size / 1000 / MB:g} GB by URL"
    return [
        Figure(
            name,
            size / MB / own,
            "MB/s",
            size / MB / peer,
            "MB/s download + sha256 + fsync",
            at_least=None if quick else 0.8,
            note="the target is for 2 GB" if quick else spread,
        ),
        Figure(
            "memory over idle meanwhile", peak, "MB", at_most=ALLOWED_MB, note="peak of all processes but PostgreSQL's"
        ),
    ]


def _import(stepway: Stepway, url: str, name: str) -> tuple[float, float]:
    """Seconds from the trigger to the job's end, and the peak of memory (MB) above what was used before."""
    idle = of_service(stepway)
    step = {
        "workflow_total_steps": 6, "step_number": 3, "trigger_workflow": True, "modality": "llm", "provider_type": "url",
        "name": name, "uri": url, "icon": "icons/providers/openai.png",
    }  # fmt: skip
    with _watched(stepway) as seen:
        began = time.perf_counter()
        workflow = stepway.finish(stepway.post("/models/local-model-workflow", step))
        seconds = time.perf_counter() - began
    stepway.client.delete(f"/models/{workflow['result']['id']}").raise_for_status()
    return seconds, max(seen) - idle


@contextmanager
def _watched(stepway: Stepway) -> Iterator[list[float]]:
    """The memory in use (MB), looked at several times a second while the block runs."""
    seen: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.append(of_service(stepway))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        seen.append(of_service(stepway))


async def download(port: int, target: str) -> float:
    """Seconds for the least that an import could do: every byte fetched, hashed, written, and at last synced."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/0/model.safetensors")
    response = connection.getresponse()
    digest, block = hashlib.sha256(), bytearray(1 << 20)
    with Path(target).open("wb", buffering=0) as out:
        while size := response.readinto(block):
            digest.update(memoryview(block)[:size])
            out.write(memoryview(block)[:size])
        os.fsync(out.fileno())
    digest.hexdigest()
    return time.perf_counter() - began


@contextmanager
def _served(path: Path) -> Iterator[int]:
    """The port of a server that has the file, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    told: Queue[int] = context.Queue()
    server = context.Process(target=_serve, args=(str(path), told), daemon=True)
    server.start()
    try:
        yield told.get(timeout=30)
    finally:
        server.terminate()
        server.join()


def _serve(path: str, told: "Queue[int]") -> None:
    with FileServer() as server:
        for number in range(8):
            server.add(f"/{number}/model.safetensors", Path(path), etag=f'"{number}"')
        told.put(server.port)
        threading.Event().wait()
