"""Sends a model's files through the API server to a `loader` that receives them, for clusters that cannot reach us.

Chunks go by the pod proxy, each at the place where the last one ended, so that a cut connection, a restarted pod or a
restart of ours costs one chunk. `loader` says what it answers to; `bringing` makes its pod.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from pydantic import SecretStr

from services.cluster.runtimes.base import Progress
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.observe import PROXIED
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from services.cluster.runtimes.kubernetes.pods import RECEIVER_PORT
from shared.contracts.models import ModelFile
from shared.jobs.outcomes import Permanent, Retry

Source = Callable[[ModelFile, int], AsyncIterator[bytes]]
"""Reads a file from an offset."""

CHUNK = 8 * 1024 * 1024
_TRIES = 8  # in a row without a byte
_WRONG = 3  # times that a file may arrive with another checksum
_PAUSE = 0.25


class Push:
    """One model to one receiving pod. Raises Permanent (`load_failed`) and Retry, as the client does."""

    def __init__(self, client: KubernetesClient, pod: str, token: SecretStr, progress: Progress | None) -> None:
        self._client = client
        self._root = PROXIED.format(namespace=NAMESPACE, pod=pod, port=RECEIVER_PORT)
        self._token = token
        self._progress = progress

    async def send(self, files: list[ModelFile], source: Source) -> None:
        total = sum(file.size for file in files)
        there = {one["path"]: one for one in (await self._ask("GET", "/v1/files"))["files"]}
        known = sorted(files, key=lambda file: file.path)
        done = 0
        for number, file in enumerate(known):
            state = there.get(file.path) or {}
            if not state.get("complete"):
                await self._file(number, file, int(state.get("have", 0)), source, done, total)
            done += file.size
        answer = await self._ask("POST", "/v1/done")
        if not answer.get("complete"):
            raise Retry("load_failed", "The cluster does not have all of the model's files yet.")

    async def _file(self, number: int, file: ModelFile, have: int, source: Source, before: int, total: int) -> None:
        wrong = 0
        while True:
            answer: dict[str, Any] = {"have": have}
            async for chunk in _chunks(source(file, have), file.size - have):
                answer = await self._ask("PUT", f"/v1/files/{number}?offset={have}", chunk)
                if answer.get("status") != 200:
                    break
                have += len(chunk)
                self._tell(before + have, total, file.path)
            if answer.get("complete"):
                return
            if answer.get("status") == 422:
                wrong += 1
                if wrong >= _WRONG:
                    raise Permanent("load_failed", f"{file.path} arrives in the cluster with another checksum.")
            elif have >= file.size and answer.get("status") != 409:
                raise Retry("load_failed", f"{file.path} ended before its size.")
            have = int(answer.get("have", 0))

    async def _ask(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        """Tried again while the pod or the API server is away: a repeated chunk is answered with where to go on."""
        pause, fault = _PAUSE, Retry("load_failed", "The pod that receives the model does not answer.")
        for _ in range(_TRIES):
            try:
                answer = await self._once(method, path, body)
                if answer["status"] in (200, 409, 422):
                    return answer
                if answer["status"] == 401:
                    raise Permanent("load_failed", "The pod that receives the model does not know our token.")
            except Retry as passing:
                fault = passing
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
        raise fault

    async def _once(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        headers = {"X-Stepway-Token": self._token.get_secret_value(), "Content-Type": "application/octet-stream"}
        timeout = aiohttp.ClientTimeout(total=300, connect=self._client.limits.connect)
        with self._client.network_faults():
            answer = await self._client.forward(method, self._root + path, headers=headers, body=body, timeout=timeout)
            async with answer:
                data = await answer.content.read(16 * 1024 * 1024)
        try:
            said = json.loads(data)
        except ValueError:
            said = {}
        return {**(said if isinstance(said, dict) else {}), "status": answer.status}

    def _tell(self, done: int, total: int, path: str) -> None:
        if self._progress is not None:
            message = f"Sending the model: {done >> 20} of {total >> 20} MiB ({path})"
            self._progress(100.0 * done / max(1, total), message)


async def _chunks(data: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Chunks of CHUNK bytes; a file without any is one empty chunk."""
    pending = bytearray()
    sent = 0
    async for part in data:
        pending += part
        while len(pending) >= CHUNK:
            yield bytes(pending[:CHUNK])
            del pending[:CHUNK]
            sent += CHUNK
    if pending or (sent == 0 and size == 0):
        yield bytes(pending)
