"""Every refusal as problem+json. `install(app)` is called once by whoever makes the FastAPI application.

`shared.errors` has the exception, `shared.error_codes` the codes; validation faults are put into plain words here, and
never repeat what was sent.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import exc as database
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shared import log
from shared.error_codes import CODES
from shared.errors import Fault, Problem
from shared.objects.store import StoreRefused, StoreUnavailable

logger = log.get_logger(__name__)

RETRY_AFTER = {429: "1", 503: "5"}  # seconds, where the problem does not say
OF_STATUS = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    412: "revision_mismatch",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
    429: "rate_limited",
    503: "unavailable",
}
PHRASES = frozenset(status.phrase for status in HTTPStatus) | {"Content Too Large"}
ONE = re.compile(r"\b1 (character|item|byte)s\b")
PARAM = re.compile(r"[\w.\-\[\]]{1,200}")

# The database is away, starts anew, has no connection left, or a lock was held for too long.
PASSING = (database.OperationalError, database.InterfaceError, database.TimeoutError)

# It stands for every status of an error, in place of FastAPI's own 422.
DESCRIPTION: dict[str, Any] = {
    "description": "A problem (RFC 9457); `code` is stable, `errors` lists every fault.",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["object", "type", "title", "status", "code", "detail", "message", "retryable", "errors"],
                "properties": {
                    "object": {"const": "error"},
                    **{name: {"type": "string"} for name in ("type", "title", "code", "detail", "message")},
                    "status": {"type": "integer"},
                    "param": {"type": ["string", "null"]},
                    "retryable": {"type": "boolean"},
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["param", "code", "message", "step"],
                            "properties": {
                                "param": {"type": ["string", "null"]},
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "step": {"type": ["integer", "null"]},
                            },
                        },
                    },
                },
            }
        }
    },
}

# What pydantic calls a fault: our code and our words. The words use the rule's own bounds only, never the input.
MESSAGES: dict[str, tuple[str, str]] = {
    "missing": ("required", "is required"),
    "extra_forbidden": ("unknown_field", "is not known here"),
    "string_too_short": ("too_short", "must have at least {min_length} characters"),
    "string_too_long": ("too_long", "must have at most {max_length} characters"),
    "too_short": ("too_short", "must have at least {min_length} items"),
    "too_long": ("too_long", "must have at most {max_length} items"),
    "bytes_too_long": ("too_long", "must have at most {max_length} bytes"),
    "string_pattern_mismatch": ("invalid_format", "does not have the required form"),
    "greater_than": ("out_of_range", "must be greater than {gt}"),
    "greater_than_equal": ("out_of_range", "must be at least {ge}"),
    "less_than": ("out_of_range", "must be less than {lt}"),
    "less_than_equal": ("out_of_range", "must be at most {le}"),
    "multiple_of": ("out_of_range", "must be a multiple of {multiple_of}"),
    "finite_number": ("out_of_range", "must be a finite number"),
    "literal_error": ("not_allowed", "must be {expected}"),
    "enum": ("not_allowed", "must be {expected}"),
    "string_type": ("invalid_type", "must be a text"),
    "string_unicode": ("invalid_format", "must be valid Unicode"),
    "bool_type": ("invalid_type", "must be true or false"),
    "bool_parsing": ("invalid_type", "must be true or false"),
    "int_type": ("invalid_type", "must be a whole number"),
    "int_parsing": ("invalid_type", "must be a whole number"),
    "int_from_float": ("invalid_type", "must be a whole number"),
    "int_parsing_size": ("out_of_range", "is too large"),
    "float_type": ("invalid_type", "must be a number"),
    "float_parsing": ("invalid_type", "must be a number"),
    "list_type": ("invalid_type", "must be a list"),
    "set_type": ("invalid_type", "must be a list"),
    "tuple_type": ("invalid_type", "must be a list"),
    "dict_type": ("invalid_type", "must be an object"),
    "model_type": ("invalid_type", "must be an object"),
    "model_attributes_type": ("invalid_type", "must be an object"),
    "dataclass_type": ("invalid_type", "must be an object"),
    "none_required": ("not_allowed", "must be null"),
    "uuid_type": ("invalid_format", "must be a UUID"),
    "uuid_parsing": ("invalid_format", "must be a UUID"),
    "uuid_version": ("invalid_format", "must be a UUID of version {expected_version}"),
    "datetime_type": ("invalid_format", "must be a time as in RFC 3339"),
    "datetime_parsing": ("invalid_format", "must be a time as in RFC 3339"),
    "datetime_from_date_parsing": ("invalid_format", "must be a time as in RFC 3339"),
    "timezone_aware": ("invalid_format", "must have a time zone"),
    "date_parsing": ("invalid_format", "must be a date"),
    "url_type": ("invalid_format", "must be a URL"),
    "url_parsing": ("invalid_format", "must be a URL"),
    "url_scheme": ("not_allowed", "must be a URL with the scheme {expected_schemes}"),
    "url_too_long": ("too_long", "must have at most {max_length} characters"),
    "is_instance_of": ("invalid_type", "has the wrong type"),
    "union_tag_invalid": ("not_allowed", "must name one of {expected_tags} in {discriminator}"),
    "union_tag_not_found": ("required", "must name its kind in {discriminator}"),
    "json_invalid": ("invalid_json", "is not valid JSON"),
}


class ProblemResponse(Response):
    """The answer for a problem, with the headers that its status calls for."""

    media_type = "application/problem+json"

    def __init__(self, problem: Problem) -> None:
        headers = {"Cache-Control": "no-store", **problem.headers}
        status = problem.status
        if status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        if status in RETRY_AFTER:
            headers.setdefault("Retry-After", RETRY_AFTER[status])
        super().__init__(_encode(problem.body()), status, headers)


def install(app: FastAPI) -> None:
    """Registers the handlers of every exception that a route may leave, and describes their answer in /openapi.json.

    Call it before the routes are added: they take the description over when they are.
    """
    app.router.responses = {"default": DESCRIPTION, **app.router.responses}
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    for passing in PASSING:
        app.add_exception_handler(passing, _on_database)
    app.add_exception_handler(StoreUnavailable, _on_store)
    app.add_exception_handler(StoreRefused, _on_store)
    app.add_exception_handler(Exception, _on_fault)


def internal(error: Exception, scope: Mapping[str, Any]) -> ProblemResponse:
    """The answer for a fault of ours, which is logged with its traceback; neither holds the body or the query."""
    logger.error("request failed", method=scope.get("method"), path=scope.get("path"), exc_info=error)
    request_id = log.request_id()
    members = {"request_id": request_id} if request_id else {}
    return ProblemResponse(Problem("internal", "Something went wrong here; it has been logged.", members=members))


def response_for(error: Exception, scope: Mapping[str, Any]) -> Response:
    """The answer for what a route's handlers did not see, such as a refusal by a middleware."""
    if isinstance(error, Problem):
        return ProblemResponse(error)
    return _of_http(error, scope) if isinstance(error, HTTPException) else internal(error, scope)


def faults_of(error: ValidationError, prefix: str = "", step: int | None = None) -> list[Fault]:
    """The faults of a model, each with its dotted path below `prefix`, in plain words and without the input."""
    parts = [prefix] if prefix else []
    details = error.errors(include_url=False, include_input=False)
    return _unique(_fault(detail, [*parts, *detail["loc"]], step) for detail in details)


def problem_of(faults: Sequence[Fault]) -> Problem:
    """422 for faults of fields: `unknown_field` when that is all, else `validation_failed`."""
    code = "unknown_field" if all(fault.code == "unknown_field" for fault in faults) else "validation_failed"
    several = f"{len(faults)} fields are wrong; see errors."
    return Problem(code, sentence(faults[0], "The body") if len(faults) == 1 else several, faults=[*faults])


def query_problem(faults: Sequence[Fault]) -> Problem:
    """400 for faults of the query."""
    several = f"{len(faults)} parameters of the query are wrong; see errors."
    return Problem("invalid_query", sentence(faults[0], "The query") if len(faults) == 1 else several, faults=[*faults])


def sentence(fault: Fault, what: str) -> str:
    """The fault of a parameter, or of `what` as a whole, with one full stop. A message with a capital is whole already."""
    words = fault.message.rstrip(".")
    return f"{words}." if words[:1].isupper() else f"{fault.param or what} {words}."


async def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return ProblemResponse(error)


async def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details: Sequence[Mapping[str, Any]] = error.errors()
    if any(detail["loc"][:1] == ("path",) for detail in details):
        return ProblemResponse(Problem("not_found", "There is nothing with this id."))
    if any(detail["type"] == "json_invalid" for detail in details):
        return ProblemResponse(Problem("invalid_json", "The body is not valid JSON."))
    faults = _unique(_fault(detail, detail["loc"][1:]) for detail in details)
    is_query = any(detail["loc"][:1] == ("query",) for detail in details)
    return ProblemResponse(query_problem(faults) if is_query else problem_of(faults))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _of_http(error, request.scope)


def _of_http(error: HTTPException, scope: Mapping[str, Any]) -> Response:
    if error.status_code >= 500 and error.status_code != 503:
        return internal(error, scope)
    if error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    code = OF_STATUS.get(error.status_code, "invalid_request")
    said = str(error.detail)
    detail = f"{CODES[code].title}." if said in PHRASES else said
    return ProblemResponse(Problem(code, detail, headers=dict(error.headers or {})))


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody is there to read it."""
    return ProblemResponse(Problem("invalid_request", "The body stopped short."))


async def _on_database(request: Request, error: Exception) -> Response:
    # Its words may repeat what was to be stored.
    cause = getattr(error, "orig", None) or error
    logger.error(
        "the database did not answer", method=request.method, path=request.url.path, fault=type(cause).__name__
    )
    return ProblemResponse(Problem("unavailable", "The database did not answer in time; send it again."))


async def _on_store(request: Request, error: Exception) -> Response:
    logger.error("the object store failed", method=request.method, path=request.url.path, fault=str(error))
    return ProblemResponse(Problem("unavailable", "The object store did not answer as it should; send it again."))


async def _on_fault(request: Request, error: Exception) -> Response:
    return internal(error, request.scope)


def _fault(detail: Mapping[str, Any], location: Iterable[object], step: int | None = None) -> Fault:
    kind = detail["type"]
    context = detail.get("ctx") or {}
    if kind in ("value_error", "assertion_error"):
        # These words are our validators' own.
        return Fault(_param(location), "invalid", str(context.get("error", "is not valid")), step)
    code, words = MESSAGES.get(kind, ("invalid", "is not valid"))
    try:
        message = ONE.sub(r"1 \1", words.format_map(context))
    except KeyError:
        message = "is not valid"
    return Fault(_param(location), code, message, step)


def _param(location: Iterable[object]) -> str | None:
    # Segments such as `list[str]` are branches of a union, not names; odd names are not repeated.
    names = [str(part) for part in location]
    path = ".".join(name for name in names if not name.endswith(("]", ")")))
    return path if PARAM.fullmatch(path) else None


def _unique(faults: Iterable[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))


def _encode(body: Mapping[str, Any]) -> bytes:
    # Plain json escapes whatever is not ASCII, so that no text can make the answer itself fail.
    return json.dumps(body, separators=(",", ":"), default=str).encode()
