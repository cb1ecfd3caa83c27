"""Calls the ports of other services through this service's sidecar, as if they were here.

A service that does not answer is waited for: it may be starting again. What it refuses is raised as it was there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import structlog
from pydantic_core import from_json

from shared.jobs.outcomes import Permanent, Retry
from shared.rpc.faults import REFUSED, unpacked
from shared.rpc.methods import MAX_BODY, Method, methods_of, port_name
from shared.rpc.parts import ELSEWHERE, END_HEADER, STREAM_HEADER
from shared.telemetry.traces import outgoing

PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between two tries
NO_ANSWER = (aiohttp.ClientError, TimeoutError)
ELSEWHERE_TRIES = 50  # to meet the replica that holds a stream
LEAVE_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Invoke(Protocol):
    """The way to other services."""

    def post(
        self, service: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer, once its headers are there. All of it may take `timeout` seconds.

        Raises one of `NO_ANSWER`, as reading the answer may do.
        """


def remote(port: type[Any], service: str, invoke: Invoke, *, patience: float, timeout: float = 60.0) -> Any:
    """The port as `service` serves it. One try lasts at most `timeout` seconds, all tries `patience` seconds; then the
    call raises `Retry` (`service_away`)."""
    return _Remote(port, service, invoke, patience, timeout)


class _Remote:
    def __init__(self, port: type[Any], service: str, invoke: Invoke, patience: float, timeout: float) -> None:
        for method in methods_of(port).values():
            call = _Call(port_name(port), method, service, invoke, patience, timeout)
            setattr(self, method.name, call.stream if method.streams else call.once)


class _Call:
    def __init__(
        self, port: str, method: Method, service: str, invoke: Invoke, patience: float, timeout: float
    ) -> None:
        self._path = f"internal/{port}/{method.name}"
        self._method = method
        self._service = service
        self._invoke = invoke
        self._patience = patience
        self._timeout = timeout

    async def once(self, *args: Any, **named: Any) -> Any:
        body = self._method.pack(args, named)
        clock = asyncio.get_running_loop().time
        end, pause = clock() + self._patience, PAUSE
        while True:
            try:
                status, content = await self._tried(body)
            except NO_ANSWER as error:
                fault = type(error).__name__
            else:
                if status == HTTPStatus.OK:
                    return self._method.answer.validate_json(content)
                fault = self._refused(status, content)
            if clock() + pause > end:
                raise Retry("service_away", f"The service {self._service} does not answer ({fault}).")
            log.info("service_away", service=self._service, path=self._path, fault=fault)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def stream(self, *args: Any, **named: Any) -> AsyncIterator[Any]:
        """Tried once: whoever reads tells the person who waits."""
        body = self._method.pack(args, named)
        held: str | None = ""
        try:
            while held is not None:
                *lines, last = (await self._part(body, held)).split(b"\n")
                told = _told(last)
                held = told.get("more")
                for line in lines:
                    yield self._method.answer.validate_python(from_json(line)["item"])
                if told.get("fault") is not None:
                    raise unpacked(told["fault"])
                if held is None and "end" not in told:  # it broke off
                    raise Retry("service_away", f"The service {self._service} has gone.")
        finally:
            if held:
                await self._leave(held)

    async def _part(self, body: bytes, held: str) -> bytes:
        for pause in (0.0, *[PAUSE] * ELSEWHERE_TRIES):  # sidecars go round the replicas
            await asyncio.sleep(pause)
            try:
                status, content = await self._tried(body, {STREAM_HEADER: held} if held else {})
            except NO_ANSWER as error:
                raise Retry("service_away", f"The service {self._service} does not answer.") from error
            if status == HTTPStatus.OK:
                return content
            fault = self._refused(status, content)
            if not held or status != ELSEWHERE:
                raise Retry("service_away", f"The service {self._service} does not answer ({fault}).")
        raise Retry("service_away", f"The service {self._service} has gone.")

    async def _leave(self, held: str) -> None:
        """Say that no more is wanted. Where that is not heard, the stream ends by itself."""
        with contextlib.suppress(*NO_ANSWER):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._tried(b"{}", {STREAM_HEADER: held, END_HEADER: "1"})

    async def _tried(self, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        if len(body) > MAX_BODY:  # a sidecar would not say so: it closes the connection
            raise Permanent("call_refused", f"A call to the service {self._service} is too large.")
        given = {**outgoing(), **(headers or {})}
        async with self._invoke.post(self._service, self._path, body, given, self._timeout) as response:
            return response.status, await response.read()

    def _refused(self, status: int, content: bytes) -> str:
        """What to say of an answer after which the call is tried again; what is final is raised."""
        if status == REFUSED:
            raise unpacked(from_json(content))
        if status in (401, 403, 413, 422):
            raise Permanent("call_refused", f"The service {self._service} refused a call of ours ({status}).")
        return f"status {status}"


def _told(line: bytes) -> dict[str, Any]:
    """What the last line of a part says; nothing, where it is not all there."""
    try:
        told: dict[str, Any] = from_json(line)
    except ValueError:
        return {}
    return told
