"""The routes by which an endpoint's pods fetch its model's files, with a token of the endpoint's own and no API key.

Which files those are follows from the endpoint alone: the manifest of its digest says it, and a request names one of
them by its number there. `loader` of the Kubernetes runtime asks; its docstring is the contract. `loader_token` has the
two tokens: the endpoint's, which is exchanged, and the session's, with which files are read.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Receive, Scope, Send

from services.app.context import AppContext, Context
from services.app.endpoints import repository
from services.app.endpoints.deploy import key_context
from services.app.endpoints.tables import EndpointRow
from services.app.models import repository as models
from shared.contracts.models import Manifest, ModelFile
from shared.errors import Problem
from shared.http.bodies import StrictRoute
from shared.http.ranges import span_of
from shared.objects.store import ObjectNotFound, blob_key, manifest_key
from shared.security import apikeys, loader_token

SESSION_SECONDS = 300
CHUNK = 256 * 1024  # bytes of a file in memory, per transfer

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/endpoints", tags=["model files"], route_class=StrictRoute)


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds. Transfers are counted in this process."""

    per_endpoint: int = 32
    in_all: int = 96
    stalled: float = 60.0  # without the client taking a chunk
    recheck: float = 30.0  # between two looks whether the endpoint may still have the files


class Transfers:
    """The transfers that run."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.running: Counter[UUID] = Counter()

    @contextlib.contextmanager
    def hold(self, endpoint_id: UUID) -> Iterator[None]:
        """A place for the length of the block. Problem `too_many_transfers` (429) when there is none."""
        if self.running[endpoint_id] >= self.limits.per_endpoint or self.running.total() >= self.limits.in_all:
            detail = "As many files are being fetched as may be at once; this one's turn comes."
            raise Problem("too_many_transfers", detail, headers={"Retry-After": "3"})
        self.running[endpoint_id] += 1
        try:
            yield
        finally:
            self.running[endpoint_id] -= 1
            if not self.running[endpoint_id]:
                del self.running[endpoint_id]


async def _token(request: Request) -> str:
    """Asked for before anything else of the request is looked at."""
    token = apikeys.bearer_token(request.headers.get("authorization"))
    if token is None:
        raise _refused()
    return token


Token = Annotated[str, Depends(_token)]


@router.post("/{endpoint_id}/model-files")
async def open_model_files(endpoint_id: UUID, token: Token, context: Context) -> dict[str, Any]:
    """Exchanges the endpoint's loader token, which its pods have, for one that reads its model's files for minutes.

    No API key is accepted here, and the token is of no use anywhere else.
    """
    endpoint, model_state = await _find(context, endpoint_id)
    if endpoint is None or not _is_token_of(context, token, endpoint):
        raise _refused()
    digest = _digest(endpoint, model_state)
    files = await _files(context, digest)
    await _check_there(context, files)
    session = loader_token.open_session(_session_key(context), endpoint_id, digest, SESSION_SECONDS)
    return {
        "token": session,
        "expires_in": SESSION_SECONDS,
        "files": [{**file.model_dump(), "href": _href(number)} for number, file in enumerate(files)],
    }


@router.get("/{endpoint_id}/model-files/{number}", response_class=Response)
async def read_model_file(
    endpoint_id: UUID, number: int, request: Request, session: Token, context: Context
) -> Response:
    """Sends a file of the endpoint's model, by its number in the list, or a `Range` of it.

    Takes the token of the exchange only.
    """
    file = await _readable(context, session, endpoint_id, number)
    tag = f'"{file.sha256}"'
    span = None if request.headers.get("if-range", tag) != tag else span_of(request.headers.get("range"), file.size)
    start, end = span or (0, file.size)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
        "Content-Disposition": "attachment",
        "Content-Length": str(end - start),
        "ETag": tag,
    }
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return _Transfer(context, request, endpoint_id, number, file, start, end, headers)


def _href(number: int) -> str:
    """Relative to the address of the exchange. A store that can sign addresses of its own may be named here instead."""
    return f"model-files/{number}"


# --- who may have what


async def _find(context: AppContext, endpoint_id: UUID) -> tuple[EndpointRow | None, str | None]:
    """The endpoint, and the state of its model."""
    async with context.database.transaction() as session:
        endpoint = await repository.get(session, endpoint_id)
        model = await models.get(session, endpoint.model_id) if endpoint is not None else None
    return endpoint, None if model is None else model.state


def _is_token_of(context: AppContext, token: str, endpoint: EndpointRow) -> bool:
    worker_key = context.keyring.open(endpoint.sealed, key_context(endpoint.id)).decode()
    return loader_token.is_token_of(token, worker_key, endpoint.id)


def _digest(endpoint: EndpointRow, model_state: str | None) -> str:
    """The digest of the files that the endpoint may have now."""
    if endpoint.phase in ("deleting", "deleted"):
        raise Problem("model_files_gone", "The endpoint is being deleted, or is not there any more.")
    if endpoint.digest is None:
        raise Problem("not_found", "The endpoint's model has no files.")
    if model_state in (None, "deleted"):
        raise _gone()
    return endpoint.digest


async def _readable(context: AppContext, session: str, endpoint_id: UUID, number: int) -> ModelFile:
    digest = await _digest_of_session(context, session, endpoint_id)
    files = await _files(context, digest)
    if not 0 <= number < len(files):
        raise Problem("not_found", "The model has no file of this number.")
    return files[number]


async def _digest_of_session(context: AppContext, session: str, endpoint_id: UUID) -> str:
    """The digest that the request may read. A session of files that the endpoint no longer serves must be exchanged."""
    digest = loader_token.digest_of_session(session, _session_key(context), endpoint_id)
    if digest is None:
        raise _refused()
    endpoint, model_state = await _find(context, endpoint_id)
    if endpoint is None or _digest(endpoint, model_state) != digest:
        raise _refused()
    return digest


def _session_key(context: AppContext) -> bytes:
    return context.keyring.derive("sessions of model files")


async def _files(context: AppContext, digest: str) -> list[ModelFile]:
    try:
        return Manifest.model_validate_json(await context.objects.get(manifest_key(digest))).files
    except ObjectNotFound:
        raise _gone() from None


async def _check_there(context: AppContext, files: list[ModelFile]) -> None:
    """Said at the exchange, where a loader gives up, rather than at a file, which it would ask for again."""
    for sha256 in {file.sha256 for file in files}:
        if not await context.objects.exists(blob_key(sha256)):
            raise _gone()


def _refused() -> Problem:
    return Problem("unauthenticated", "Send a valid token of the endpoint: Authorization: Bearer <token>.")


def _gone() -> Problem:
    return Problem("model_files_gone", "The model's files are not there any more.")


# --- the bytes


class _Transfer(Response):
    """Sends a part of a file. It ends, and the file is closed, when the client goes, takes nothing, or may no longer."""

    media_type = "application/octet-stream"

    def __init__(
        self,
        context: AppContext,
        request: Request,
        endpoint_id: UUID,
        number: int,
        file: ModelFile,
        start: int,
        end: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, 206 if "Content-Range" in headers else 200, headers)
        self._context = context
        self._request = request
        self._endpoint_id = endpoint_id
        self._number = number
        self._file = file
        self._start = start
        self._length = end - start
        self._transfers: Transfers = request.app.state.transfers
        self._sent = 0
        self._end = "client_gone"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = asyncio.get_running_loop().time()
        with self._transfers.hold(self._endpoint_id):
            writer = asyncio.create_task(self._write(send))
            others = [asyncio.create_task(_gone_away(receive)), asyncio.create_task(self._until_refused())]
            try:
                await asyncio.wait({writer, *others}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (writer, *others):
                    task.cancel()
                await asyncio.gather(writer, *others, return_exceptions=True)
        if not writer.cancelled():
            writer.result()
        log.info(
            "model_file_sent", endpoint_id=str(self._endpoint_id), sha256=self._file.sha256, number=self._number,
            start=self._start, length=self._length, sent=self._sent, end=self._end,
            seconds=round(asyncio.get_running_loop().time() - started, 3),
        )  # fmt: skip

    async def _write(self, send: Send) -> None:
        data = self._context.objects.read(
            blob_key(self._file.sha256), start=self._start, length=self._length, chunk=CHUNK
        )
        try:
            chunk = await _next(data)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while chunk:
                async with asyncio.timeout(self._transfers.limits.stalled):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sent += len(chunk)
                chunk = await _next(data)
        except ObjectNotFound:
            raise _gone() from None
        except TimeoutError:
            self._end = "stalled"
            return
        finally:
            if (close := getattr(data, "aclose", None)) is not None:
                await close()
        self._end = "done" if self._sent == self._length else "file_too_short"
        if self._end == "done":  # else the answer stays unfinished, and the server cuts the connection
            await send({"type": "http.response.body", "body": b""})

    async def _until_refused(self) -> None:
        while True:
            await asyncio.sleep(self._transfers.limits.recheck)
            try:
                endpoint, model_state = await _find(self._context, self._endpoint_id)
                if endpoint is None:
                    raise _refused()
                _digest(endpoint, model_state)
            except Problem as problem:
                self._end = problem.code
                return
            except Exception as error:  # the database is away: it is asked again
                log.warning("model_file_not_rechecked", error=type(error).__name__)


async def _next(data: AsyncIterator[bytes]) -> bytes:
    return await anext(data, b"")


async def _gone_away(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
