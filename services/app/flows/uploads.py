"""Takes in the bytes of an upload: into a scratch file, hashed on the way, never more than a little of them in memory.

A form of one part `file`, or a body that is the file. What is left of an upload that was cut off goes with its block.
"""

import errno
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header

from shared.errors import Problem
from shared.http.bodies import FORM_TYPE
from shared.http.multipart import FileReader, display_name, unreadable
from shared.objects.blocking import settled
from shared.objects.scratch import held_scratch
from shared.objects.store import ObjectStore

AT_ONCE = 1024 * 1024  # bytes that are gathered before they are hashed and written
ENVELOPE = 16 * 1024  # bytes that a form may have around its file
UNKNOWN = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}", re.ASCII)
_FILE = {"type": "string", "format": "binary"}

DESCRIBED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM_TYPE.decode(): {"schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}},
            UNKNOWN: {"schema": _FILE},
        },
    }
}


@dataclass(frozen=True, slots=True)
class Received:
    """A file as it came. `name` is for display only; `size` in bytes, `sha256` in lower-case hex."""

    path: Path
    name: str
    media_type: str
    size: int
    sha256: str


@asynccontextmanager
async def received(request: Request, store: ObjectStore, limit: int, name: str | None) -> AsyncIterator[Received]:
    """The body as a file of at most `limit` bytes, which is there within the block; `name` in place of the form's.

    Problems: `body_too_large`, `invalid_request`, `unsupported_media_type`, `unavailable` where the disk is full.
    """
    kind, header = _content_type(request)
    form = FileReader(header) if kind == FORM_TYPE.decode() else None
    async with held_scratch(store, "upload") as folder:
        path = folder / "content"
        try:
            size, sha256 = await _write(path, _bytes_of(request, form), limit)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Problem("unavailable", "There is no room for the file.", headers={"Retry-After": "60"}) from None
            raise
        given = form.name if form else None
        if size == 0 and not given:
            raise unreadable("There is no file in the body.")
        yield Received(
            path,
            display_name(name or given or "") or "file",
            _media_type(form.media_type if form else kind),
            size,
            sha256,
        )


def _content_type(request: Request) -> tuple[str, str]:
    """The media type in lower case, and the whole header."""
    headers = request.headers.getlist("content-type")
    if len(headers) > 1:
        raise unreadable("The header content-type comes twice.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Problem("unsupported_media_type", "Send the file without a content encoding.")
    header = headers[0] if headers else ""
    return _essence(header), header


def _media_type(given: str | None) -> str:
    """Of what is given, be it true or not; parameters are left out."""
    kind = _essence(given or "") or UNKNOWN
    if _MEDIA_TYPE.fullmatch(kind) is None:
        raise Problem("unsupported_media_type", "The file's content type must be one such as application/pdf.")
    return kind


def _essence(header: str) -> str:
    kind, _options = parse_options_header(header)
    return kind.decode("latin-1").strip().lower()


async def _bytes_of(request: Request, form: FileReader | None) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if form is None:
            yield chunk
        else:
            form.write(chunk)
            yield form.take()
    if form is not None:
        form.finish()


async def _write(path: Path, chunks: AsyncIterator[bytes], limit: int) -> tuple[int, str]:
    """How many bytes came, and their sha256."""
    digest, size, gathered = hashlib.sha256(), 0, bytearray()
    file = await settled(path.open, "xb")

    def write(file: BinaryIO, data: bytes) -> None:
        digest.update(data)
        file.write(data)

    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise Problem("body_too_large", f"A file may have at most {limit} bytes.")
            gathered += chunk
            if len(gathered) >= AT_ONCE:
                await settled(write, file, bytes(gathered))
                gathered.clear()
        await settled(write, file, bytes(gathered))
    finally:
        await settled(file.close)
    return size, digest.hexdigest()
