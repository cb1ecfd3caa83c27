"""Request bodies: strict JSON and strict forms, for typed routes (`StrictRoute`) and for those that bind by hand.

`shared.http.strict_json` and `shared.http.multipart` do the parsing; here are media types, limits and FastAPI's idiom:

    router = APIRouter(route_class=StrictRoute)

    @router.post("/things")
    async def create(body: ThingIn) -> Thing: ...

    @router.post("/files")
    async def upload(form: Annotated[FileForm, Form(media_type="multipart/form-data")]) -> Thing: ...
"""

import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import params
from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import Problem
from shared.http import strict_json
from shared.http.multipart import FormLimits, FormReader, UploadedFile, unreadable

__all__ = ["Form", "FormBool", "FormLimits", "StrictRoute", "UploadedFile", "fingerprint", "read_form", "read_json"]

MAX_JSON = 1024 * 1024  # bytes
JSON_TYPE = b"application/json"
FORM_TYPE = b"multipart/form-data"
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(slots=True)
class Form:
    """What a form says. `fields` are texts or None for an empty one (any JSON value when the body was JSON)."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, UploadedFile] = field(default_factory=dict)

    def fingerprint(self) -> str:
        return fingerprint(self.fields, {name: file.sha256 for name, file in self.files.items()})


def fingerprint(fields: Mapping[str, Any], files: Mapping[str, str] | None = None) -> str:
    """sha256 (hex) of parsed content, the same for any order, spacing or boundary. `files` maps names to digests."""
    content = {"fields": fields, "files": files or {}}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


async def read_json(request: Request, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """The body as a JSON object, else `unsupported_media_type`, `body_too_large`, `invalid_json` or 422."""
    value = await _read_json_value(request, limit)
    if not isinstance(value, dict):
        raise Problem("validation_failed", "The body must be a JSON object.")
    return value


async def read_form(request: Request, *, limits: FormLimits = FormLimits(), accept_json: bool = True) -> Form:
    """The body as a form; a JSON object too unless refused, where no file is sent. Problems as in `read_json`."""
    kind, header = _media_type(request)
    if accept_json and _is_json(kind):
        return Form(await read_json(request, limit=limits.total_bytes))
    if kind != FORM_TYPE:
        accepted = "multipart/form-data or application/json" if accept_json else "multipart/form-data"
        raise Problem("unsupported_media_type", f"Send {accepted}.")
    reader = FormReader(header.decode("latin-1"), limits)
    size = 0
    _check_length(request, limits.total_bytes)
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.total_bytes:
            raise _too_large(limits.total_bytes)
        if chunk:
            reader.write(chunk)
    if not size:
        raise unreadable("The body is empty; send a form.")
    form = Form()
    for name, value in reader.finish().items():
        if isinstance(value, UploadedFile):
            form.files[name] = value
        else:
            form.fields[name] = value
    return form


def _boolean(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (found := BOOLEANS.get(value.lower())) is None:
        raise PydanticKnownError("bool_parsing")
    return found


FormBool = Annotated[bool, BeforeValidator(_boolean)]
"""A boolean that a form may spell true, false, 1 or 0, in any case."""


class StrictRoute(APIRoute):
    """FastAPI's route, with the declared body read strictly before anything else sees it.

    A subclass may set other limits; `max_body_size=` on a route bounds the whole body of that route.
    """

    json_limit: int = MAX_JSON
    limits_of_form: FormLimits = FormLimits()

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        body = self.body_field
        if body is None:
            return handler
        is_form = isinstance(body.field_info, params.Form)
        required = body.field_info.is_required()
        limit = self.max_body_size or self.json_limit
        limits = self.limits_of_form

        async def strict(request: Request) -> Response:
            read = _ReadRequest(request.scope, request.receive, request._send)
            if is_form:
                await read.load_form(limits)
            else:
                await read.load_json(limit, required)
            return await handler(read)

        return strict


class _ReadRequest(Request):
    """A request whose body has been read and parsed; FastAPI asks for `body`, then for `json` or `form`."""

    async def load_json(self, limit: int, required: bool) -> None:
        if not required and _bodiless(self):
            return
        self._json = await _read_json_value(self, limit)

    async def load_form(self, limits: FormLimits) -> None:
        form = await read_form(self, limits=limits, accept_json=False)
        # FormData is declared for Starlette's own UploadFile, but carries any value to the validation of the field.
        items: list[tuple[str, Any]] = [*form.fields.items(), *form.files.items()]
        self._form = FormData(items)


async def _read_json_value(request: Request, limit: int) -> Any:
    kind, _ = _media_type(request)
    if kind and not _is_json(kind):
        raise _not_json()
    raw = await _read(request, limit)
    if raw and not kind:
        raise _not_json()
    return strict_json.loads(raw)


def _not_json() -> Problem:
    return Problem("unsupported_media_type", "Send application/json in UTF-8.")


async def _read(request: Request, limit: int) -> bytes:
    """The whole body, kept for those who ask the request for it later."""
    _check_length(request, limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    request._body = b"".join(chunks)
    return request._body


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"The body may have at most {limit} bytes.")


def _header(request: Request, name: bytes) -> bytes | None:
    found = [value for key, value in request.scope["headers"] if key == name]
    if len(found) > 1:
        raise unreadable(f"The header {name.decode()} comes twice.")
    return found[0] if found else None


def _check_length(request: Request, limit: int) -> None:
    length = _header(request, b"content-length")
    if length is not None and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)


def _bodiless(request: Request) -> bool:
    if _header(request, b"transfer-encoding") is not None:
        return False
    return _header(request, b"content-length") in (None, b"0")


def _media_type(request: Request) -> tuple[bytes, bytes]:
    """The media type in lower case, without parameters, and the whole header. Refuses encodings and charsets."""
    encoding = _header(request, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise Problem("unsupported_media_type", "Send the body without a content encoding.")
    header = _header(request, b"content-type") or b""
    kind, _, parameters = header.partition(b";")
    if b"charset" in parameters.lower():
        charset = parameters.lower().partition(b"charset")[2].lstrip(b" =").split(b";")[0].strip(b' "')
        if charset not in (b"utf-8", b"utf8", b"us-ascii"):
            raise Problem("unsupported_media_type", "Send the body in UTF-8.")
    return kind.strip().lower(), header


def _is_json(kind: bytes) -> bool:
    return kind == JSON_TYPE or (kind.startswith(b"application/") and kind.endswith(b"+json"))
