"""The one place that speaks to workers: a pool of HTTP/1.1 connections, and what their failures mean.

It uses httpx's transport rather than its client: a client would keep the workers' cookies and send them to others on
the same host, follow redirects with a worker's key, and read proxies from the environment.
"""

from functools import lru_cache

import httpx

from services.gateway.limits import Limits
from services.gateway.table import Worker
from shared.errors import Problem

_KEEPALIVE_SECONDS = 3.0  # less than the servers' own 5 s, so that we seldom write into a connection they are closing
_WRITE_SECONDS = 30.0


class WorkerFailure(Exception):
    """A worker gave no usable answer, so another may be asked. `hard`: it can be taken for dead at once.

    `what` ends the sentence "The worker …", and names neither its address nor its key.
    """

    def __init__(self, what: str, *, hard: bool = False, unreachable: bool = True) -> None:
        super().__init__(what)
        self.what = what
        self.hard = hard
        self.unreachable = unreachable

    def problem(self) -> Problem:
        code = "endpoint_unavailable" if self.unreachable else "worker_failed"
        return Problem(code, f"The worker {self.what}.", headers={"Retry-After": "2"})


class Upstream:
    def __init__(self, limits: Limits) -> None:
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEPALIVE_SECONDS
            ),
        )
        self._timeouts = {"connect": limits.connect_seconds, "read": None, "write": _WRITE_SECONDS, "pool": None}

    async def post(self, worker: Worker, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """The worker's answer as soon as its headers are there; its body is unread, and it must be closed.

        It waits without limit for the headers: the caller has the time limits. Raises WorkerFailure.
        """
        sent = {
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": "stepway-gateway",
            **headers,
        }
        if worker.api_key is not None:
            sent["authorization"] = f"Bearer {worker.api_key.get_secret_value()}"
        request = httpx.Request(
            "POST", _url(worker.url, path), headers=sent, content=body, extensions={"timeout": self._timeouts}
        )
        try:
            return await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            raise failure(error) from error

    async def aclose(self) -> None:
        await self._transport.aclose()


@lru_cache(maxsize=4096)
def _url(base: str, path: str) -> httpx.URL:
    return httpx.URL(base + path)


def failure(error: httpx.TransportError) -> WorkerFailure:
    match error:
        case httpx.ConnectTimeout():
            return WorkerFailure("could not be reached in time", hard=True)
        case httpx.ConnectError():
            return WorkerFailure("could not be reached", hard=True)
        case httpx.RemoteProtocolError():
            return WorkerFailure("closed the connection, or did not speak HTTP")
        case _:
            return WorkerFailure("closed the connection")


def secret_of(worker: Worker) -> str | None:
    return None if worker.api_key is None else worker.api_key.get_secret_value()
