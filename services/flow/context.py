"""What a task of a flow may use of the world: `TaskContext` is the `stepway.tasks.Context` that real executions have.

`fetching` makes its requests, `artifacts` keeps its files; the app answers the rest. `run_flow` makes one context for each
attempt of a task.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from services.flow.artifacts import Artifacts, Keeper
from services.flow.fetching import FetchedAnswer, fetching, guarded_client
from shared.errors import Problem
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectStore
from shared.security.addresses import AddressRefused, check_url
from shared.security.outgoing import Outgoing
from stepway.tasks import Provider, TaskError

LIMIT = 16 * 1024**2  # bytes of an answer, unless a task asks for more
LIBRARY_LIMIT = 64 * 1024**2  # bytes of an answer to a library that has a client of ours
ERROR_LIMIT = 256 * 1024  # bytes of an error to it
_OPENAI = "api.openai.com"  # never answers without a key

Progress = Callable[[float | None, str | None], None]


class Executions(Keeper, Protocol):
    """The part of `shared.contracts.flows.FlowPort` that a task needs."""

    async def provider_key(self, job_id: UUID) -> str | None: ...

    async def endpoint(self, job_id: UUID, endpoint: str) -> Provider: ...


class Credentials(Protocol):
    """The part of `shared.contracts.ports.AppPort` that a task needs."""

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class CalledProvider:
    """See `stepway.tasks.Provider`. An empty key is not sent."""

    base_url: str
    key: str = field(default="", repr=False)


class TaskContext:
    """See `stepway.tasks.Context`.

    `openai_base_url` is called where a task names no other; like an endpoint's gateway it is trusted, but only by
    `http_client`, which libraries use to call providers, never by `request`, whose addresses are users'.
    """

    def __init__(
        self,
        job_id: UUID,
        task: str,
        *,
        outgoing: Outgoing,
        openai_base_url: str,
        store: ObjectStore,
        flows: Executions,
        app: Credentials,
        on_progress: Progress | None = None,
    ) -> None:
        self.execution_id = str(job_id)
        self.task = task
        self._job_id = job_id
        self._policy = outgoing.policy
        self._provider_policy = outgoing.policy
        self._tls = outgoing.tls
        self._openai_base_url = openai_base_url.rstrip("/")
        self._flows = flows
        self._app = app
        self._on_progress = on_progress
        self._artifacts = Artifacts(store, flows, job_id, task)

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        if self._on_progress is not None:
            self._on_progress(None if percent is None else min(max(percent, 0.0), 100.0), message)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = LIMIT,
        timeout: float = 30.0,
        follow: bool = True,
    ) -> AbstractAsyncContextManager[FetchedAnswer]:
        return fetching(
            self._policy, self._tls, method, url,
            headers=headers, body=body, limit=limit, timeout=timeout, follow=follow,
        )  # fmt: skip

    def http_client(self, *, timeout: float = 60.0) -> httpx.AsyncClient:
        return guarded_client(
            self._provider_policy, self._tls,
            limit=LIBRARY_LIMIT, error_limit=ERROR_LIMIT, timeout=timeout, follow=True,
        )  # fmt: skip

    async def provider(self, given: Mapping[str, Any]) -> CalledProvider:
        endpoint, base_url, credential = (given.get(name) for name in ("endpoint", "base_url", "credential_id"))
        if endpoint is not None:
            if base_url is not None or credential is not None:
                raise TaskError("provider_ambiguous", "An `endpoint` goes with neither `base_url` nor `credential_id`.")
            return await self._endpoint(str(endpoint))
        chosen = None if base_url is None else self._base_url(str(base_url))
        if credential is not None:
            found = self._by_credential(await self.credential(str(credential)), chosen)
        else:
            key = await self._flows.provider_key(self._job_id)
            found = CalledProvider(chosen or self._openai_base_url, key or "")
        if not found.key and urlsplit(found.base_url).hostname == _OPENAI:
            raise TaskError(
                "provider_key_missing",
                "No key for the provider: name a `credential_id`, or send X-Provider-Key with the execution.",
            )
        if found.base_url == self._openai_base_url:
            self._provider_policy = self._provider_policy.trusting(found.base_url)
        return found

    async def credential(self, credential_id: str) -> Mapping[str, str]:
        try:
            return await self._app.credential(self._job_id, UUID(credential_id))
        except ValueError:
            raise TaskError("credential_gone", "`credential_id` is not the id of a credential.") from None
        except (Permanent, Problem) as refused:
            raise _refusal(refused) from None

    async def save(self, name: str, media_type: str, content: bytes | AsyncIterator[bytes]) -> dict[str, Any]:
        return await self._artifacts.save(name, media_type, content)

    def open(self, file: Mapping[str, Any]) -> AsyncIterator[bytes]:
        return self._artifacts.open(file)

    async def read(self, file: Mapping[str, Any], limit: int) -> bytes:
        return await self._artifacts.read(file, limit)

    async def _endpoint(self, endpoint: str) -> CalledProvider:
        try:
            found = await self._flows.endpoint(self._job_id, endpoint)
        except (Permanent, Problem) as refused:
            raise _refusal(refused) from None
        self._provider_policy = self._provider_policy.trusting(found.base_url)
        return CalledProvider(found.base_url.rstrip("/"), found.key)

    def _base_url(self, url: str) -> str:
        try:
            parsed = check_url(url, self._provider_policy.trusting(self._openai_base_url))
        except AddressRefused as refused:
            raise TaskError("address_refused", f"`base_url`: the address guard says: {refused}.") from None
        if parsed.query or parsed.fragment:
            raise TaskError("address_refused", "`base_url` must have neither a query nor a fragment.")
        return str(parsed).rstrip("/")

    def _by_credential(self, fields: Mapping[str, str], chosen: str | None) -> CalledProvider:
        """A credential's secret meets no address but its own; one without an address is for the installation's default."""
        own = fields.get("base_url")
        where = self._base_url(own) if own else self._openai_base_url
        if chosen is not None and chosen != where:
            reason = "its own base URL" if own else "the installation's default provider only, for it names no base URL"
            raise TaskError(
                "credential_elsewhere",
                f"The credential is for {reason}; `base_url` names another. Make a credential with that base URL.",
            )
        key = fields.get("api_key") or fields.get("token") or ""
        if not key and not own:
            raise TaskError("provider_key_missing", "The credential has no API key.")
        return CalledProvider(where, key)


def _refusal(refused: Permanent | Problem) -> TaskError:
    return TaskError(refused.code, refused.message if isinstance(refused, Permanent) else refused.detail)
