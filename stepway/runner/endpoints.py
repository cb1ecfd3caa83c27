"""Deployed endpoints for flows, and for any script: `endpoint("my-model")` knows the gateway, the key and the model.

    answer = await endpoint("my-model").chat("Why is the sky blue?")
    async for piece in endpoint("my-model").stream([{"role": "user", "content": "Tell me a story."}]): ...
    client = await endpoint("my-model").openai()  # openai.AsyncOpenAI, for everything else

Where the gateway is and which key it takes: what is given, else STEPWAY_GATEWAY_URL (or STEPWAY_URL) and STEPWAY_API_KEY (or
STEPWAY_KEY), else what the server that runs the flow is joined with.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

from stepway.client import base_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Messages = str | Iterable[Mapping[str, Any]]
CONNECT, TIMEOUT = 10.0, 600.0  # seconds: to connect, for an answer
SHOWN = 10


class EndpointError(Exception):
    """An endpoint cannot be called; the message says what to do."""


class _Joined:
    """What the server of this process is joined with."""

    url: str | None = None
    key: str | None = None
    project: str | None = None


def use(url: str, key: str, project: str | None) -> None:
    """Where endpoints are found that are named without more."""
    _Joined.url, _Joined.key, _Joined.project = url, key, project


def endpoint(
    name: str, *, url: str | None = None, key: str | None = None, project: str | None = None, timeout: float = TIMEOUT
) -> "Endpoint":
    """The endpoint of a name or an id; `project` is the id of its project, where several have one of the name. Nothing is
    asked before the first call. Raises EndpointError where no address or no key is known.
    """
    url = url or os.environ.get("STEPWAY_GATEWAY_URL") or os.environ.get("STEPWAY_URL") or _Joined.url
    key = key or os.environ.get("STEPWAY_API_KEY") or os.environ.get("STEPWAY_KEY") or _Joined.key
    if not url:
        raise EndpointError(
            "It is not known where endpoints are: set STEPWAY_URL, or STEPWAY_GATEWAY_URL, or give `url`."
        )
    if not key:
        raise EndpointError(
            "Endpoints take a key: set STEPWAY_API_KEY, or give `key`; `stepway keys create` makes one."
        )
    try:
        return Endpoint(name, base_url(url), key.strip(), project or _Joined.project, timeout)
    except ValueError as error:
        raise EndpointError(str(error)) from None


class Endpoint:
    """One endpoint. For the event loop of its first call; make another one for another loop."""

    def __init__(self, name: str, url: str, key: str, project: str | None, timeout: float) -> None:
        self.name = name
        self.model = name  # what `model` says in a request; the endpoint knows its own
        self._url = url
        self._key = key
        self._project = project
        self._timeout = timeout
        self._id: str | None = None
        self._client: AsyncOpenAI | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"

    async def base_url(self) -> str:
        """The address for OpenAI's clients, with `/v1`. Raises EndpointError."""
        if self._id is None:
            self._id = await self._find()
        return f"{self._url}/endpoints/{self._id}/v1"

    async def openai(self) -> "AsyncOpenAI":
        """OpenAI's client for the endpoint; `model` may be anything in its requests. Raises EndpointError."""
        if self._client is None:
            openai = await asyncio.to_thread(_library)
            address = await self.base_url()
            limits = openai.Timeout(self._timeout, connect=CONNECT)
            http = openai.DefaultAsyncHttpxClient(timeout=limits, trust_env=_is_elsewhere(self._url))
            client = openai.AsyncOpenAI(api_key=self._key, admin_api_key="", base_url=address, http_client=http)
            client.organization = client.project = None  # what the library read from the environment is for OpenAI
            client._custom_headers = {}
            self._client = client
        return self._client

    async def chat(self, messages: Messages, **options: Any) -> str:
        """The text of the answer to a chat; `options` are OpenAI's, such as `max_tokens`. Raises EndpointError."""
        found = await self._create(messages, options)
        return found.choices[0].message.content or ""

    async def stream(self, messages: Messages, **options: Any) -> AsyncIterator[str]:
        """The same in pieces, as they come."""
        openai = await asyncio.to_thread(_library)
        try:
            async with await self._create(messages, {**options, "stream": True}) as pieces:
                async for piece in pieces:
                    if piece.choices and (text := piece.choices[0].delta.content):
                        yield text
        except openai.APIError as error:
            raise self._error(error) from None

    async def aclose(self) -> None:
        """Close the connections; the next call opens others."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _create(self, messages: Messages, options: dict[str, Any]) -> Any:
        openai = await asyncio.to_thread(_library)
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        completions: Any = (await self.openai()).chat.completions
        try:
            return await completions.create(messages=given, **{"model": self.model, **options})
        except openai.APIError as error:
            raise self._error(error) from None

    def _error(self, error: Any) -> EndpointError:
        """In words, without the request that may hold anything."""
        status = getattr(error, "status_code", None)
        if status is None:
            return EndpointError(f"No answer of the endpoint {self.name!r} at {self._url} ({type(error).__name__}).")
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.message)[:500]
        if status in (401, 403):
            said += " Check the key: it needs the scope `inference`, and its user a place in the endpoint's project."
        return EndpointError(f"The endpoint {self.name!r} answered {status}: {said}")

    async def _find(self) -> str:
        """The id that the name stands for."""
        import httpx

        try:
            return str(UUID(self.name))
        except ValueError:
            pass
        headers = {"Authorization": f"Bearer {self._key}"}
        query = {"name": self.name, "limit": "200"} | ({"project_id": self._project} if self._project else {})
        try:
            async with httpx.AsyncClient(timeout=CONNECT, trust_env=_is_elsewhere(self._url)) as http:
                answer = await http.get(f"{self._url}/endpoints", params=query, headers=headers)
                found = answer.raise_for_status().json()["data"]
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):
                detail = "the key is not valid there, or lacks the scope `read` with which names are looked up; or give the id."
            else:
                detail = "set STEPWAY_URL to the platform's address, or give the endpoint's id in place of its name."
            raise EndpointError(
                f"{self._url} answered {status} when asked for the endpoint {self.name!r}: {detail}"
            ) from None
        except httpx.HTTPError as error:
            raise EndpointError(
                f"No platform answers at {self._url} ({type(error).__name__}); check STEPWAY_URL."
            ) from None
        except (ValueError, LookupError, TypeError):
            raise EndpointError(f"What answers at {self._url} is no platform; check STEPWAY_URL.") from None
        live = [one for one in found if one["state"] not in ("failed", "deleted", "deleting")]
        if len(live) == 1:
            return str(live[0]["id"])
        if not live:
            raise EndpointError(
                f"There is no endpoint {self.name!r}; `stepway endpoints list` shows those that there are."
            )
        places = ", ".join(f"{one['id']} (project {one['project_id']})" for one in live[:SHOWN])
        raise EndpointError(f"Several endpoints are called {self.name!r}; give the id or the project of one: {places}.")


def _library() -> ModuleType:
    """In a thread: it takes seconds to import."""
    import openai
    import openai.resources.chat

    return openai


def _is_elsewhere(url: str) -> bool:
    """Whether a proxy of the environment may stand between: it would not find this machine."""
    return urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")
