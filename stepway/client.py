"""A small synchronous client of Stepway's API: requests with retries, lists over their pages, event streams, jobs, chat.

    with Client("http://127.0.0.1:8400", key) as client:
        for model in client.items("/models", state="active"):
            ...

Every refusal is an `ApiError`, every missing answer an `Unreachable` (`problems`). `wizards` drives the wizards with it.
"""

import json
import mimetypes
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from stepway import sse
from stepway.problems import ApiError, Unreachable, error_of, openai_error

JOB_ENDS = frozenset({"succeeded", "failed", "cancelled", "cleanup_required"})
PATIENCE = 30.0
"""Seconds that retries of one request may take together."""
SILENCE = 45.0
"""Seconds without a byte after which an event stream is taken up anew; the server sends one every 15."""

PIECE = 256 * 1024
"""Bytes of an upload that are read at a time."""

Files = Mapping[str, tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event with its data parsed."""

    id: str | None
    name: str
    data: Any


class _Pieces:
    """The bytes of a file; from the beginning at each attempt."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        with self._file.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


class Client:
    """Talks to one server with one key. `patience` is how long (seconds) refusals for load and lost connections are retried."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        patience: float = PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = base_url(url)
        headers = {"User-Agent": "stepway-client", **({"Authorization": f"Bearer {key}"} if key else {})}
        # A proxy of the environment is for the outside: it would get the key, and not find this machine.
        proxied = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")
        limits = httpx.Timeout(timeout, connect=10.0)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=limits, trust_env=proxied)
        self._patience = patience
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- requests

    def get(self, path: str, **params: Any) -> Any:
        return self.request("GET", path, params=params)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """POST a JSON body. The Idempotency-Key, a fresh one unless given, makes its retries safe."""
        return self.request("POST", path, body=body, idempotency_key=idempotency_key, headers=headers)

    def post_form(
        self, path: str, fields: Mapping[str, str], files: Files, *, idempotency_key: str | None = None
    ) -> Any:
        """POST a multipart form."""
        return self.request("POST", path, fields=fields, files=files, idempotency_key=idempotency_key)

    def upload(self, path: str, file: Path, **params: Any) -> Any:
        """POST a file as it is, in pieces; its media type is that of its name's ending."""
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = {
            "Content-Type": kind, "Content-Length": str(file.stat().st_size), "Idempotency-Key": str(uuid.uuid4()),
        }  # fmt: skip
        url = _with(path, {"name": file.name, **params})
        request = self._http.build_request("POST", url, content=_Pieces(file), headers=headers)
        return _content(self._send(request, repeatable=True))

    def post_bytes(self, path: str, content: bytes, headers: Mapping[str, str]) -> Any:
        """POST a JSON body that is these very bytes, as their signature says among the headers."""
        headers = {"Content-Type": "application/json", **headers}
        return _content(self._send(self._http.build_request("POST", _with(path, {}), content=content, headers=headers),
                                   repeatable=True))  # fmt: skip

    def patch(self, path: str, body: Any) -> Any:
        return self.request("PATCH", path, body=body)

    def put(self, path: str, body: Any, *, revision: int | None = None) -> Any:
        """PUT a JSON body; with a revision, only over that one."""
        return self.request("PUT", path, body=body, headers=None if revision is None else {"If-Match": f'"{revision}"'})

    def delete(self, path: str, **params: Any) -> Any:
        """DELETE; None, or what the server answers (the job that deletes)."""
        return self.request("DELETE", path, params=params)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        fields: Mapping[str, str] | None = None,
        files: Files | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The parsed JSON of the answer, its text when it is no JSON, None when it is empty."""
        own = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())} if method == "POST" else {}
        headers = {**own, **(headers or {})}
        url = _with(path, params)
        if files is not None or fields is not None:
            parts: dict[str, Any] = {name: (None, value) for name, value in (fields or {}).items()}
            parts |= dict(files or {})
            request = self._http.build_request(method, url, files=parts, headers=headers)
        else:
            request = self._http.build_request(method, url, json=body, headers=headers)
        return _content(self._send(request, repeatable=method in ("GET", "POST", "PUT")))

    def _send(self, request: httpx.Request, *, repeatable: bool, stream: bool = False) -> httpx.Response:
        """The accepted answer. Retries 429 and 503, lost connections when `repeatable`, connections never made always."""
        deadline = time.monotonic() + self._patience
        pause = 0.2
        while True:
            try:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                if stream:
                    response.read()
                    response.close()
            except httpx.TransportError as error:
                never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if not (repeatable or never_sent) or time.monotonic() + pause > deadline:
                    raise Unreachable(_sentence(self.url, error)) from error
                wait = pause
            else:
                refusal = error_of(response, self.url)
                waiting = response.status_code in (429, 503) or refusal.code == "idempotency_in_flight"
                wait = max(_retry_after(response), pause)
                if not waiting or time.monotonic() + wait > deadline:
                    raise refusal
            self._sleep(wait)
            pause = min(pause * 2, 3.0)

    # ---- lists

    def items(self, path: str, *, limit: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, page after page; at most `limit` of them."""
        left, cursor = limit, None
        while left is None or left > 0:
            page = self.get(path, limit=min(left or 200, 200), cursor=cursor, **params)
            data = page["data"] if left is None else page["data"][:left]
            yield from data
            left = None if left is None else left - len(data)
            cursor = page.get("next_cursor")
            if not cursor:
                return

    # ---- streams

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        silence: float | None = None,
    ) -> Iterator[httpx.Response]:
        """An open answer, to be read as it comes; `silence` is how long (seconds) nothing may come."""
        timeout = httpx.Timeout(silence, connect=10.0)
        request = self._http.build_request(method, _with(path, params), json=body, timeout=timeout)
        response = self._send(request, repeatable=method == "GET", stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise Unreachable(_sentence(self.url, error)) from error
        finally:
            response.close()

    def events(self, path: str, *, last_event_id: str | None = None) -> Iterator[Event]:
        """A resource's events to their end. A cut stream goes on after the last event seen."""
        lost_since: float | None = None
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
            timeout = httpx.Timeout(SILENCE, connect=10.0)
            request = self._http.build_request("GET", path, headers=headers, timeout=timeout)
            response = self._send(request, repeatable=True, stream=True)
            try:
                if response.status_code == 204:
                    return
                for event in sse.parse(response.iter_lines(), last_event_id):
                    last_event_id, lost_since = event.id, None
                    yield Event(event.id, event.name, json.loads(event.data))
            except httpx.TransportError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > self._patience:
                    raise Unreachable(_sentence(self.url, error)) from error
            finally:
                response.close()
            self._sleep(0.2)

    # ---- jobs

    def follow_job(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job as it is now, and again at each change, to its end."""
        job = self.get(f"/jobs/{job_id}")
        yield job
        if job["state"] in JOB_ENDS:
            return
        for event in self.events(f"/jobs/{job_id}/events"):
            job = merged(job, event)
            yield job
            if job["state"] in JOB_ENDS:
                break
        if job["state"] not in JOB_ENDS:
            yield self.get(f"/jobs/{job_id}")

    def wait_job(self, job_id: str, *, timeout: float | None = None) -> dict[str, Any]:
        """The job when it has ended. `Unreachable` when it has not within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 30.0 if deadline is None else min(30.0, deadline - time.monotonic())
            if left <= 0:
                raise Unreachable(f"The job {job_id} has not ended within {timeout:g} seconds.")
            job: dict[str, Any] = self.get(f"/jobs/{job_id}", wait=round(left, 1))
            if job["state"] in JOB_ENDS:
                return job

    # ---- inference

    def chat(self, endpoint_id: str, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        """Asks an endpoint; yields the pieces of the answer as they come. `options` are those of OpenAI's API."""
        body = {
            "messages": messages,
            "stream": True,
            **{name: value for name, value in options.items() if value is not None},
        }
        path = f"/endpoints/{endpoint_id}/v1/chat/completions"
        with self.stream("POST", path, body=body, silence=300.0) as response:
            for event in sse.parse(response.iter_lines()):
                if event.data == "[DONE]":
                    return
                chunk = json.loads(event.data)
                if "error" in chunk:
                    raise openai_error(response.status_code, chunk["error"])
                for choice in chunk.get("choices", []):
                    if piece := (choice.get("delta") or {}).get("content"):
                        yield piece


def base_url(url: str) -> str:
    """A server's URL without a slash at the end. ValueError when it is none, or holds a password."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8400.")
    if parts.username or parts.password:
        raise ValueError("A URL must not hold a user name or a password; use a key.")
    return url.strip().rstrip("/")


def merged(job: dict[str, Any], event: Event) -> dict[str, Any]:
    """The job after an event of its stream: a whole job, or one step of it."""
    if event.name == "job":
        return {**job, **event.data}
    if event.name != "step":
        return job
    step = dict(event.data)
    percent = step.pop("job_percent", job.get("percent"))
    steps = [step if one["key"] == step["key"] else one for one in job["steps"]]
    if all(one["key"] != step["key"] for one in job["steps"]):
        steps.append(step)
    return {**job, "percent": percent, "steps": steps}


def _with(path: str, params: Mapping[str, Any] | None) -> httpx.URL:
    """The path with the parameters that have a value, beside those that it has already."""
    return httpx.URL(path).copy_merge_params(
        {name: value for name, value in (params or {}).items() if value is not None}
    )


def _content(response: httpx.Response) -> Any:
    if not response.content:
        return None
    kind = response.headers.get("content-type", "").split(";")[0].strip()
    return response.json() if kind == "application/json" or kind.endswith("+json") else response.text


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _sentence(url: str, error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return f"No Stepway answers at {url}: {error or 'the connection timed out'}."
    if isinstance(error, httpx.TimeoutException):
        return f"{url} has not answered in time."
    return f"The connection to {url} was lost: {error or type(error).__name__}."


__all__ = ["JOB_ENDS", "ApiError", "Client", "Event", "Unreachable", "base_url", "merged"]
