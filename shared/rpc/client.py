"""Calls the ports of other services through this service's sidecar, as if they were here.

A service that does not answer is waited for: it may be starting again. What it refuses is raised as it was there.
"""

import asyncio
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
from shared.telemetry.traces import outgoing

PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between two tries
NO_ANSWER = (aiohttp.ClientError, TimeoutError)

log = structlog.get_logger(__name__)


class Invoke(Protocol):
    """The way to other services."""

    def post(
        self, service: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer, once its headers are there. All of it may take `timeout` seconds; None: it may go on for ever.

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
        try:
            async with self._post(body, None) as response:
                if response.status != HTTPStatus.OK:
                    fault = self._refused(response.status, await response.read())
                    raise Retry("service_away", f"The service {self._service} does not answer ({fault}).")
                async for line in _lines(response):
                    yield self._line(line)
        except NO_ANSWER as error:
            raise Retry("service_away", f"The service {self._service} does not answer, or has gone.") from error

    def _line(self, line: bytes) -> Any:
        given = from_json(line)
        if isinstance(given, dict) and given.keys() == {"fault"}:
            raise unpacked(given["fault"])
        return self._method.answer.validate_python(given)

    async def _tried(self, body: bytes) -> tuple[int, bytes]:
        async with self._post(body, self._timeout) as response:
            return response.status, await response.read()

    def _post(self, body: bytes, timeout: float | None) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if len(body) > MAX_BODY:  # a sidecar would not say so: it closes the connection
            raise Permanent("call_refused", f"A call to the service {self._service} is too large.")
        return self._invoke.post(self._service, self._path, body, outgoing(), timeout)

    def _refused(self, status: int, content: bytes) -> str:
        """What to say of an answer after which the call is tried again; what is final is raised."""
        if status == REFUSED:
            raise unpacked(from_json(content))
        if status in (401, 403, 413, 422):
            raise Permanent("call_refused", f"The service {self._service} refused a call of ours ({status}).")
        return f"status {status}"


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """However long they are."""
    begun: list[bytes] = []
    async for part in response.content.iter_any():
        *whole, rest = part.split(b"\n")
        for line in whole:
            yield b"".join([*begun, line])
            begun.clear()
        begun.append(rest)
