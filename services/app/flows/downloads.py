"""Sends a file, or a range of it. It takes one of its key's streams while it is under way."""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.app.context import AppContext
from services.app.flows.tables import ArtifactRow
from services.app.identity.caller import Caller
from services.app.streams import hold_slot
from shared.errors import Problem
from shared.http.ranges import span_of
from shared.objects.store import ObjectNotFound, blob_key

CHUNK = 256 * 1024  # bytes
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(; ?[\w-]{1,40}=[\w.-]{1,80}){0,3}", re.ASCII)


class _Held(StreamingResponse):
    """It ends when the client goes; the stream of bytes is closed then."""

    def __init__(
        self, request: Request, caller: Caller, body: AsyncIterator[bytes], status: int, headers: dict[str, str]
    ):
        super().__init__(body, status, headers)
        self._request, self._caller, self._body = request, caller, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with hold_slot(self._request, self._caller):
                await super().__call__(scope, receive, send)
        finally:
            if (close := getattr(self._body, "aclose", None)) is not None:
                await close()


async def download(request: Request, context: AppContext, caller: Caller, artifact: ArtifactRow) -> StreamingResponse:
    """Always as an attachment, of a type that no browser makes a page of."""
    key, tag = blob_key(artifact.sha256), f'"{artifact.sha256}"'
    span = None if request.headers.get("if-range", tag) != tag else span_of(request.headers.get("range"), artifact.size)
    start, end = span or (0, artifact.size)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name, safe='')}",
        "Content-Length": str(end - start),
        "Content-Security-Policy": "sandbox",
        "Content-Type": artifact.media_type
        if _MEDIA_TYPE.fullmatch(artifact.media_type)
        else "application/octet-stream",
        "ETag": tag,
        "X-Content-Type-Options": "nosniff",
    }
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    try:
        await context.objects.stat(key)
    except ObjectNotFound:
        raise Problem("not_found", "The bytes of the file are not there any more.") from None
    body = context.objects.read(key, start=start, length=end - start, chunk=CHUNK)
    return _Held(request, caller, body, 206 if span else 200, headers)
