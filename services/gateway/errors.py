"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, whoever made them."""

import json
import re
from typing import Any

from shared.errors import Problem
from shared.http.problems import OF_STATUS

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MESSAGE_CHARACTERS = 1000
# How engines say that the prompt and the answer do not fit the context: llama.cpp by its type, the others in words.
_OVERFLOW = re.compile(r"exceed_context_size|context_length_exceeded|ContextWindowExceeded|maximum context length")


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error(
    status: int, message: str, *, type_: str | None = None, param: str | None = None, code: str | None = None
) -> bytes:
    members = {"message": message, "type": type_ or _type(status), "param": param, "code": code}
    return json.dumps({"error": members}, separators=(",", ":")).encode()


def of_problem(problem: Problem) -> bytes:
    return error(problem.status, problem.detail, param=problem.param, code=problem.code)


def event(problem: Problem) -> bytes:
    """The error as the last event of a stream."""
    return b"data: " + of_problem(problem) + b"\n\n"


def of_worker(status: int, body: bytes, secret: str | None) -> tuple[int, bytes]:
    """A worker's refusal as the client gets it: status and body, in OpenAI's form.

    Without the worker's key, should the worker have repeated it. A code is always there: the worker's own if it is a
    text, else ours for the status.
    """
    found = _parse(body)
    given = found.get("error")
    fields: dict[str, Any] = given if isinstance(given, dict) else found
    message = _text(fields.get("message")) or _text(given) or _text(found.get("detail"))
    shown = _redact(message or f"The worker answered {status}.", secret)[:_MESSAGE_CHARACTERS]
    type_, code = _short(fields.get("type"), secret), _short(fields.get("code"), secret)
    if any(_OVERFLOW.search(text or "") for text in (type_, code, shown)):
        return 400, error(400, shown, param=_short(fields.get("param"), secret), code="context_length_exceeded")
    if code is None or code.isdigit():
        code = OF_STATUS.get(status, "invalid_request") if status < 500 else "worker_failed"
    return status, error(status, shown, type_=type_, param=_short(fields.get("param"), secret), code=code)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {"detail": body.decode("utf-8", "replace").strip()} if b"<" not in body else {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    if isinstance(value, list | dict) and value:
        value = json.dumps(value)
    return value if isinstance(value, str) and value else None


def _short(value: object, secret: str | None) -> str | None:
    return _redact(value, secret)[:100] if isinstance(value, str) else None


def _redact(text: str, secret: str | None) -> str:
    return text.replace(secret, "[redacted]") if secret else text
