"""Requests of tasks to addresses that came from users: guarded at every hop, bounded, with faults as `TaskError`s.

`context` offers them to tasks. The guard itself is `shared.security.addresses`; `bounded` limits bodies.
"""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import httpx

from services.flow.bounded import BoundedTransport
from shared.security.addresses import MAX_REDIRECTS, AddressPolicy, AddressRefused, GuardedTransport, check_url
from stepway.tasks import Fetched, TaskError

USER_AGENT = "Stepway"
MAX_HEADERS = 64
MAX_HEADER = 16 * 1024  # characters of one header's value
_CONNECT = 10.0  # seconds
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# What says how a message is sent is ours to say.
_OURS = frozenset(
    {
        "host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer",
        "expect", "accept-encoding", "proxy-authorization", "proxy-connection",
    }
)  # fmt: skip
# All others may hold a secret, and are for the host that was asked only.
_HARMLESS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_KEPT_ON_REDIRECT = _OURS | _HARMLESS


def guarded_client(
    policy: AddressPolicy,
    tls: ssl.SSLContext,
    *,
    limit: int,
    timeout: float,
    follow: bool,
    error_limit: int | None = None,
) -> httpx.AsyncClient:
    """Limits in bytes of each body, `timeout` in seconds between two chunks. It reads nothing of the environment."""
    return httpx.AsyncClient(
        transport=BoundedTransport(GuardedTransport(policy, verify=tls), limit, error_limit),
        headers={"User-Agent": USER_AGENT},
        timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT)),
        follow_redirects=follow,
        max_redirects=MAX_REDIRECTS,
        trust_env=False,
    )


class FetchedAnswer:
    """See `stepway.tasks.Answer`."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.head = Fetched(response.status_code, str(response.url), response.headers)

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.HTTPError as error:
            raise fault_of(error) from None


@asynccontextmanager
async def fetching(
    policy: AddressPolicy,
    tls: ssl.SSLContext,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None,
    body: bytes | None,
    limit: int,
    timeout: float,
    follow: bool,
) -> AsyncIterator[FetchedAnswer]:
    """See `stepway.tasks.Context.request`."""
    if method.upper() not in _METHODS:
        raise TaskError("bad_request", f"The method is none of {', '.join(sorted(_METHODS))}.")
    named = checked_headers(headers or {})
    try:
        where = check_url(url, policy)
    except AddressRefused as refused:
        raise fault_of(refused) from None
    async with guarded_client(policy, tls, limit=limit, timeout=timeout, follow=False) as client:
        request = client.build_request(method.upper(), where, headers=named, content=body)
        response = await _sent(client, request, follow)
        try:
            yield FetchedAnswer(response)
        finally:
            await response.aclose()


async def _sent(client: httpx.AsyncClient, request: httpx.Request, follow: bool) -> httpx.Response:
    for _ in range(MAX_REDIRECTS + 1):
        try:
            response = await client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as error:
            raise fault_of(error) from None
        if not follow or response.next_request is None:
            return response
        await response.aclose()
        onward = response.next_request
        if not _same_place(request.url, onward.url):
            for name in [name for name in onward.headers if name.lower() not in _KEPT_ON_REDIRECT]:
                del onward.headers[name]
        request = onward
    raise TaskError("too_many_redirects", f"The server redirects more than {MAX_REDIRECTS} times.")


def checked_headers(headers: Mapping[str, object]) -> dict[str, str]:
    """The headers of a user, fit to be sent. Raises `TaskError` (`bad_header`), which never repeats a value."""
    if len(headers) > MAX_HEADERS:
        raise TaskError("bad_header", f"There are more than {MAX_HEADERS} headers.")
    named = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise TaskError("bad_header", f"{name[:80]!r} is not the name of a header.")
        if name.lower() in _OURS:
            raise TaskError("bad_header", f"The header {name} cannot be set by a task.")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TaskError("bad_header", f"The value of the header {name} is not a text.")
        text = str(value).strip(" \t")
        if len(text) > MAX_HEADER or not all(" " <= letter <= "~" or letter == "\t" for letter in text):
            raise TaskError("bad_header", f"The value of the header {name} is too long, or not printable ASCII.")
        named[name] = text
    return named


def fault_of(error: Exception) -> TaskError:
    """What a failed request means for its task. Of the URL only host and port are told: the rest may hold a secret."""
    if isinstance(error, TaskError):
        return error
    if isinstance(error, AddressRefused):
        return TaskError("address_refused", f"The address guard says: {error}.")
    if isinstance(error, httpx.TooManyRedirects):
        return TaskError("too_many_redirects", f"The server redirects more than {MAX_REDIRECTS} times.")
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return TaskError("address_refused", "The address, or one that it redirects to, is not one of http or https.")
    host = _host(error)
    if isinstance(error, httpx.TimeoutException):
        how = "could not be reached" if isinstance(error, httpx.ConnectTimeout) else "did not answer"
        return TaskError("unreachable", f"{host} {how} in time.", retryable=True)
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            return TaskError("certificate_refused", f"The TLS certificate of {host} is not accepted: {reason}.")
        if isinstance(cause, ssl.SSLError):
            return TaskError("unreachable", f"{host} does not speak TLS with us.", retryable=True)
        if isinstance(cause, ConnectionRefusedError):
            return TaskError("unreachable", f"{host} refuses the connection.", retryable=True)
        if isinstance(cause, socket.gaierror):
            return TaskError("unreachable", f"{host} was not found.", retryable=True)
    if "resolved" in str(error):
        return TaskError("unreachable", f"{host} was not found: the name cannot be looked up.", retryable=True)
    return TaskError("unreachable", f"The connection to {host} broke off.", retryable=True)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _same_place(before: httpx.URL, after: httpx.URL) -> bool:
    """Whether both are of one origin, or the second is the first one's site with TLS."""
    secured = (before.scheme, before.port, after.scheme, after.port) == ("http", None, "https", None)
    same = (before.scheme, before.port) == (after.scheme, after.port)
    return before.host == after.host and (same or secured)


def _host(error: Exception) -> str:
    try:
        return (
            error.request.url.netloc.decode("ascii", "replace")[:300]
            if isinstance(error, httpx.RequestError)
            else "The server"
        )
    except RuntimeError:  # it failed before there was a request
        return "The server"
