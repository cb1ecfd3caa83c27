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
from typing import Annotated, Any, TypeVar, cast

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import Problem
from shared.http import strict_json
from shared.http.multipart import FormLimits, FormReader, UploadedFile, unreadable

__all__ = [
    "Form",
    "FormBool",
    "FormLimits",
    "StrictRoute",
    "UploadedFile",
    "before_body",
    "fingerprint",
    "fingerprint_of",
    "read_form",
    "read_json",
]

MAX_JSON = 1024 * 1024  # bytes
JSON_TYPE = b"application/json"
FORM_TYPE = b"multipart/form-data"
CONTENT_HEADERS = frozenset((b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"))
CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
READ_JSON, READ_FORM = "stepway.json", "stepway.form"  # keys of the scope
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


def fingerprint_of(request: Request) -> str:
    """The fingerprint of the body that has been read from `request`, by `StrictRoute` or by hand; of nothing if none."""
    if (form := request.scope.get(READ_FORM)) is not None:
        return cast(Form, form).fingerprint()
    return fingerprint(request.scope.get(READ_JSON, {}))


async def read_json(request: Request, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """The body as a JSON object, else `unsupported_media_type`, `body_too_large` or `invalid_json`.

    A second call gives the same object.
    """
    return await _json_object(request, _content(request), limit)


async def read_form(request: Request, *, limits: FormLimits = FormLimits(), accept_json: bool = True) -> Form:
    """The body as a form; a JSON object too unless refused, where no file is sent. Problems as in `read_json`.

    A second call gives the same form.
    """
    if (known := request.scope.get(READ_FORM)) is not None:
        return cast(Form, known)
    content = _content(request)
    if accept_json and content.is_json:
        form = Form(await read_json(request, limit=limits.total_bytes))
    elif content.kind == FORM_TYPE:
        form = await _multipart(request, content, limits)
    else:
        accepted = "multipart/form-data or application/json" if accept_json else "multipart/form-data"
        raise Problem("unsupported_media_type", f"Send {accepted}.")
    request.scope[READ_FORM] = form
    return form


def _boolean(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (found := BOOLEANS.get(value.lower())) is None:
        raise PydanticKnownError("bool_parsing")
    return found


FormBool = Annotated[bool, BeforeValidator(_boolean)]
"""A boolean that a form may spell true, false, 1 or 0, in any case."""


Gate = Callable[[Request], Coroutine[Any, Any, object]]
GateT = TypeVar("GateT", bound=Gate)
_GATES: set[Any] = set()


def before_body(gate: GateT) -> GateT:
    """Marks a dependency on the request alone, such as who asks: a `StrictRoute` asks it before it reads the body.

    It is asked once more as a dependency, and should remember its answer in the request's scope.
    """
    _GATES.add(gate)
    return gate


def _gates(dependant: Dependant) -> list[Gate]:
    found = [gate for inner in dependant.dependencies for gate in _gates(inner)]
    return [*found, dependant.call] if dependant.call in _GATES else found  # type: ignore[list-item]  # checked when it was marked


class StrictRoute(APIRoute):
    """FastAPI's route, with the declared body read strictly before anything else sees it, but for `before_body`.

    A subclass may set other limits; `max_body_size=` on a route bounds the whole body of that route. In a typed form an
    empty text is absent, and the field takes its default; routes that tell null from absent use `read_form`.
    """

    json_limit: int = MAX_JSON
    limits_of_form: FormLimits = FormLimits()

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        body = self.body_field
        if body is None:
            return handler
        limits = self.limits_of_form
        limit = self.max_body_size or self.json_limit
        required = body.field_info.is_required()
        gates = _gates(self.dependant)

        async def strict_form(request: Request) -> Response:
            for gate in gates:
                await gate(request)
            form = await read_form(request, limits=limits, accept_json=False)
            # FormData is declared for Starlette's own UploadFile, but carries any value to the field's validation.
            items: list[tuple[str, Any]] = [*form.fields.items(), *form.files.items()]
            request._form = FormData(items)
            return await handler(request)

        async def strict_body(request: Request) -> Response:
            for gate in gates:
                await gate(request)
            content = _content(request)
            if required or not content.bodiless:
                # Where FastAPI's own `request.json()` looks first.
                request._json = await _json_object(request, content, limit)
            return await handler(request)

        return strict_form if isinstance(body.field_info, params.Form) else strict_body


@dataclass(slots=True)
class _Content:
    """What the headers say of the body. `kind` is the media type in lower case, empty when it is missing."""

    kind: bytes
    header: bytes
    length: bytes | None
    chunked: bool

    @property
    def is_json(self) -> bool:
        return self.kind == JSON_TYPE or (self.kind.startswith(b"application/") and self.kind.endswith(b"+json"))

    @property
    def bodiless(self) -> bool:
        return not self.chunked and self.length in (None, b"0")

    def check_length(self, limit: int) -> None:
        if self.length is not None and (not self.length.isdigit() or len(self.length) > 18 or int(self.length) > limit):
            raise _too_large(limit)


def _content(request: Request) -> _Content:
    """The headers about the body, each at most once, without a content encoding or a charset other than UTF-8."""
    found: dict[bytes, bytes] = {}
    for name, value in request.scope["headers"]:
        if name in CONTENT_HEADERS:
            if name in found:
                raise unreadable(f"The header {name.decode()} comes twice.")
            found[name] = value
    if found.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        raise Problem("unsupported_media_type", "Send the body without a content encoding.")
    header = found.get(b"content-type", b"")
    kind = header
    if header != JSON_TYPE:
        kind, options = parse_options_header(header.decode("latin-1"))
        if options.get(b"charset", b"utf-8").lower() not in CHARSETS:
            raise Problem("unsupported_media_type", "Send the body in UTF-8.")
    return _Content(kind, header, found.get(b"content-length"), b"transfer-encoding" in found)


async def _json_object(request: Request, content: _Content, limit: int) -> dict[str, Any]:
    if (known := request.scope.get(READ_JSON)) is not None:
        return cast(dict[str, Any], known)
    if content.kind and not content.is_json:
        raise _not_json()
    content.check_length(limit)
    raw = await _read(request, limit)
    if raw and not content.kind:
        raise _not_json()
    value = strict_json.loads(raw)
    if not isinstance(value, dict):
        raise strict_json.invalid("The body must be a JSON object.")
    request.scope[READ_JSON] = value
    return value


async def _read(request: Request, limit: int) -> bytes:
    """The whole body, kept for those who ask the request for it later."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    request._body = b"".join(chunks)
    return request._body


async def _multipart(request: Request, content: _Content, limits: FormLimits) -> Form:
    reader = FormReader(content.header.decode("latin-1"), limits)
    content.check_length(limits.total_bytes)
    size = 0
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


def _not_json() -> Problem:
    return Problem("unsupported_media_type", "Send application/json in UTF-8.")


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"The body may have at most {limit} bytes.")
