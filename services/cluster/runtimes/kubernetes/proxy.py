"""Requests to workers through the API server's pod proxy, as an httpx transport: for clusters that nothing else leads into.

The API server takes the Authorization header for itself and passes it on to nobody, so the worker's key goes along as
`X-Api-Key`, which every engine of ours accepts. The connection is the cluster's own: its authority, its credentials,
its address rules, no redirects.
"""

import json
import re
from collections.abc import AsyncIterator

import aiohttp
import httpx

from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.objects import printable
from shared.jobs.outcomes import StepError

KEY_HEADER = "x-api-key"
_NOT_PASSED = frozenset({"host", "authorization", "connection", "transfer-encoding", "content-length", "cookie"})
_NOT_RETURNED = frozenset({"transfer-encoding", "connection", "set-cookie"})
# The API server keeps connections to workers, and a worker may end one just when it is used again. An inference that
# was not answered may be asked once more.
_STALE = re.compile(r": EOF$|connection reset|server closed idle connection")
_MAX_REFUSAL = 64 * 1024


class ApiServerTransport(httpx.AsyncBaseTransport):
    """Takes only URLs below the cluster's own. A worker that cannot be reached is a `httpx.ConnectError`."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._root = httpx.URL(client.url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        here = (self._root.scheme, self._root.host, self._root.port)
        prefix = self._root.raw_path.rstrip(b"/")
        if (url.scheme, url.host, url.port) != here or not url.raw_path.startswith(prefix + b"/api/v1/namespaces/"):
            raise httpx.UnsupportedProtocol("the URL is not one of the cluster's proxies", request=request)
        target = url.raw_path[len(prefix) :].decode("ascii")
        body = await request.aread()
        answer, begun = await self._ask(request, target, body)
        if isinstance(begun, str) and _STALE.search(begun):
            answer, begun = await self._ask(request, target, body)
        if isinstance(begun, str):
            said = f"the API server does not reach the worker (status {answer.status}: {begun})"
            raise httpx.ConnectError(said, request=request)
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_RETURNED]
        return httpx.Response(answer.status, headers=headers, stream=_Body(answer, begun, request), request=request)

    async def _ask(
        self, request: httpx.Request, target: str, body: bytes
    ) -> tuple[aiohttp.ClientResponse, bytes | str]:
        try:
            answer = await self._client.forward(
                request.method, target, headers=_passed(request), body=body, timeout=self._timeout(request)
            )
            return answer, await _begun(answer)
        except (aiohttp.ClientError, TimeoutError, OSError, StepError) as error:
            raise _translated(error, request) from error

    def _timeout(self, request: httpx.Request) -> aiohttp.ClientTimeout:
        given = request.extensions.get("timeout") or {}
        connect = given.get("connect") or self._client.limits.connect
        return aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=given.get("read"))


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: aiohttp.ClientResponse, begun: bytes, request: httpx.Request) -> None:
        self._answer = answer
        self._begun = begun
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._begun:
            yield self._begun
        try:
            async for chunk in self._answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, self._request) from error

    async def aclose(self) -> None:
        self._answer.close()  # an answer that is left in the middle takes its connection along


def _passed(request: httpx.Request) -> dict[str, str]:
    passed = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED}
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        passed[KEY_HEADER] = key
    return passed | {"accept-encoding": "identity"}


async def _begun(answer: aiohttp.ClientResponse) -> bytes | str:
    """What of an error's body had to be read to know whose it is; text: it is the API server's own word, not the worker's."""
    if answer.status < 400 or "json" not in answer.headers.get("Content-Type", ""):
        return b""
    received = bytearray()
    while len(received) < _MAX_REFUSAL and (chunk := await answer.content.read(_MAX_REFUSAL - len(received))):
        received += chunk
    try:
        said = json.loads(bytes(received))
    except ValueError:
        said = None
    if isinstance(said, dict) and said.get("kind") == "Status" and said.get("apiVersion") == "v1":
        answer.close()
        return printable(said.get("message"), 200)
    return bytes(received)


def _translated(error: BaseException, request: httpx.Request) -> httpx.TransportError:
    """Without the original's words: aiohttp's show the request's headers."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return httpx.ConnectTimeout(name, request=request)
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout(name, request=request)
    if isinstance(error, aiohttp.ClientConnectorError | StepError):
        return httpx.ConnectError(name, request=request)
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return httpx.RemoteProtocolError(name, request=request)
    return httpx.ReadError(name, request=request)
