"""Asking a hub with huggingface_hub, behind the address guard, and its errors as outcomes of a step.

huggingface_hub makes its HTTP client through one factory per process. Ours guards every connection by the policy of
the call that is running; a call without one (none here) would meet the strict policy.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import TypeVar, cast

import httpcore2
import httpx
import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import ModelInfo

from services.model.sources.fetching.failures import outcome_of_failure
from services.model.sources.fetching.statuses import outcome_of_status
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.security.addresses import AddressPolicy, AddressRefused, check_url, resolve_blocking

TIMEOUT = 30.0  # seconds for one question
T = TypeVar("T")
_policy: ContextVar[AddressPolicy | None] = ContextVar("hub_address_policy", default=None)


async def model_info(
    endpoint: str, repository: str, revision: str | None, token: str | None, policy: AddressPolicy
) -> ModelInfo:
    """What the hub knows of a repository at a revision, with sizes and digests of its files. Raises step outcomes."""
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token or False)
    ask = partial(api.model_info, repository, revision=revision, files_metadata=True, timeout=TIMEOUT)

    def guarded() -> ModelInfo:
        _policy.set(policy)
        return ask()

    try:
        return await _in_daemon_thread(guarded)
    except HfHubHTTPError as error:
        headers = httpx.Headers(dict(error.response.headers))
        raise outcome_of_hub(error.response.status_code, headers, credential=token is not None) from None
    except HFValidationError:
        raise Permanent("invalid_uri", "The hub's library does not accept this repository name.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, AddressRefused) as error:
        raise outcome_of_failure(error) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Retry("source_unavailable", "The hub's answer cannot be read.") from None


async def _in_daemon_thread(call: Callable[[], T]) -> T:
    """The call's result. A cancellation leaves the thread to its timeout, and an exiting process does not wait for it
    as it would for a pool's: the call only reads.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    # a thread has a context of its own: the policy set in it reaches no other call
    threading.Thread(target=work, name="hub", daemon=True).start()
    return await answer


def outcome_of_hub(status: int, headers: httpx.Headers, *, credential: bool) -> StepError:
    """A hub's refusal; it says more in X-Error-Code than in the status."""
    code = headers.get("x-error-code", "")
    if code == "RevisionNotFound":
        return Permanent("revision_not_found", "The repository has no such branch, tag or commit.")
    if code == "EntryNotFound":
        return Permanent("file_not_found", "The repository has no such file at this revision.")
    if code == "GatedRepo" or (status == 403 and "gated" in headers.get("x-error-message", "").lower()):
        if not credential:
            return Permanent("gated_model", "The model is gated. Add a credential of an account that was let in.")
        return Permanent("gated_model", "The model is gated, and the credential's account has not been let in.")
    if status == 401:
        if credential and "invalid" in headers.get("x-error-message", "").lower():
            return Permanent("credential_refused", "The hub does not accept the credential.")
        if credential:
            return Permanent("model_not_found", "There is no such model, or the credential may not see it.")
        return Permanent("credential_required", "There is no such public model; a private one needs a credential.")
    if status == 403:
        return Permanent("credential_refused", "The credential's permissions do not suffice for this model.")
    if status == 404:
        return Permanent("model_not_found", "There is no such model at the hub.")
    return outcome_of_status(status, headers)


class _Backend(httpcore2.NetworkBackend):
    """Connects only to judged addresses; see `shared.security.addresses.GuardedBackend`."""

    def __init__(self) -> None:
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = resolve_blocking(host, port, _policy.get() or AddressPolicy())
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError("the host name cannot be resolved") from None
        failure: Exception | None = None
        for address in addresses:
            try:
                return self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("the host name has no address")


class _Transport(httpx2.HTTPTransport):
    def __init__(self) -> None:
        super().__init__()
        # nothing is kept alive: a connection that one policy allowed is never used under another
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(), max_keepalive_connections=0, network_backend=_Backend()
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        check_url(str(request.url), _policy.get() or AddressPolicy())
        return super().handle_request(request)


def _client() -> httpx2.Client:
    return httpx2.Client(transport=_Transport(), follow_redirects=True, timeout=TIMEOUT, trust_env=False)


huggingface_hub.set_client_factory(_client)
