"""The one place that speaks to workers: a pool of HTTP/1.1 connections, and what their failures mean.

A worker may bring a transport of its own, which leads through its cluster's API server; others stand behind an ingress.
What such a server says in the worker's place is a failure to reach the worker, and never an answer to the client.

It uses httpx's transport rather than its client: a client would keep the workers' cookies and send them to others on
the same host, follow redirects with a worker's key, and read proxies from the environment.
"""

from functools import lru_cache

import httpx

from services.gateway.limits import Limits
from services.gateway.table import Worker
from shared import log
from shared.errors import Problem

logger = log.get_logger(__name__)

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
        if worker.host is not None:
            sent["host"] = worker.host
        request = httpx.Request(
            "POST", _url(worker.url, path), headers=sent, content=body, extensions={"timeout": self._timeouts}
        )
        try:
            response = await (worker.transport or self._transport).handle_async_request(request)
        except httpx.TransportError as error:
            _note(worker, error)
            raise failure(error) from error
        except RuntimeError as error:
            if worker.transport is None:
                raise
            _note(worker, error)  # a cluster's connection that was closed before the worker left the table
            raise WorkerFailure("could not be reached", hard=True) from error
        if worker.is_behind_another and _is_of_another(response):
            await response.aclose()
            raise WorkerFailure(f"could not be reached (status {response.status_code})")
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


def _is_of_another(response: httpx.Response) -> bool:
    """Engines tell their errors in JSON; the servers before them in text and pages."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code >= 400 and kind != "application/json"


def _note(worker: Worker, error: Exception) -> None:
    """For the operator, who must mend it: clients are told no more than that the worker cannot be reached."""
    if worker.is_behind_another:
        logger.warning("worker not reached", worker=worker.id, error=f"{type(error).__name__}: {error}"[:300])


@lru_cache(maxsize=4096)
def _url(base: str, path: str) -> httpx.URL:
    return httpx.URL(base + path)


def failure(error: httpx.TransportError) -> WorkerFailure:
    match error:
        case httpx.ConnectTimeout():
            return WorkerFailure("could not be reached in time", hard=True)
        case httpx.ConnectError() | httpx.UnsupportedProtocol():
            return WorkerFailure("could not be reached", hard=True)
        case httpx.RemoteProtocolError():
            return WorkerFailure("closed the connection, or did not speak HTTP")
        case _:
            return WorkerFailure("closed the connection")


def secret_of(worker: Worker) -> str | None:
    return None if worker.api_key is None else worker.api_key.get_secret_value()
