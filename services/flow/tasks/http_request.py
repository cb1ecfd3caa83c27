"""`http.request`: one request to any server."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from services.flow.openai_calls import retry_after
from services.flow.texts import clean, decoded, is_binary
from shared.errors import Problem
from shared.http import strict_json
from shared.objects.blocking import settled
from stepway.tasks import Answer, Context, Field, TaskError, TaskType

MAX_BODY = 16 * 1024**2  # bytes, of the request and of the answer
MAX_FILE = 64 * 1024**2  # bytes of an answer that is kept as a file
MAX_JSON = 4 * 1024**2  # bytes; as objects they take many times as much
MAX_JSON_DEPTH = 64
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_HIDDEN = frozenset({"set-cookie", "www-authenticate", "proxy-authenticate", "authorization"})


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    headers = dict(inputs.get("headers") or {})
    body = _body(inputs, headers)
    url = _with_query(inputs["url"], inputs.get("query") or {})
    async with context.request(
        inputs.get("method") or "GET", url, headers=headers, body=body, limit=MAX_FILE if inputs.get("as_file") else MAX_BODY,
        follow=inputs.get("follow_redirects") is not False,
    ) as answer:  # fmt: skip
        _check_status(answer, inputs.get("expect"))
        outputs: dict[str, Any] = {
            "status": answer.head.status,
            "headers": {
                name: clean(value) for name, value in answer.head.headers.items() if name.lower() not in _HIDDEN
            },
            "json": None,
            "text": "",
            "file": None,
        }
        content_type = answer.head.headers.get("content-type", "")
        if inputs.get("as_file"):
            kind = content_type.partition(";")[0].strip()
            outputs["file"] = await context.save(_name(answer.head.url), kind, answer.chunks())
            return outputs
        content = await answer.read()
    # in a thread: reading megabytes of JSON takes a second, in which others want their turn
    return outputs | await settled(_read, content, content_type)


def _body(inputs: Mapping[str, Any], headers: dict[str, Any]) -> bytes | None:
    """The bytes to send; names their type in `headers` where the user does not."""
    if inputs.get("json") is not None and inputs.get("body") is not None:
        raise TaskError("bad_request", "Either `json` or `body` is given, not both.")
    kind, body = "text/plain; charset=utf-8", inputs.get("body")
    if inputs.get("json") is not None:
        kind, body = "application/json", json.dumps(inputs["json"], ensure_ascii=False, allow_nan=False)
    if body is None:
        return None
    if not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = kind
    data = str(body).encode("utf-8", "replace")
    if len(data) > MAX_BODY:
        raise TaskError("too_large", f"The body to send is larger than {MAX_BODY >> 20} MiB.")
    return data


def _with_query(url: str, query: Mapping[str, Any]) -> str:
    """The URL with further parameters; a list gives a parameter several times, null none."""
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in query.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list):
                raise TaskError("bad_request", f"The query parameter {name[:80]!r} is neither a text nor a number.")
            if one is not None:
                pairs.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
    try:
        return str(httpx.URL(url).copy_merge_params(pairs)) if pairs else url
    except (httpx.InvalidURL, ValueError, TypeError):
        raise TaskError("address_refused", "The URL is not well formed.") from None


def _check_status(answer: Answer, expect: Any) -> None:
    status = answer.head.status
    expected = expect if isinstance(expect, list) else [] if expect is None else [expect]
    if not all(isinstance(one, int | float) and 100 <= one <= 599 for one in expected):
        raise TaskError("bad_request", "`expect` is a list of HTTP statuses.")
    if status not in expected if expected else not 200 <= status < 300:
        raise TaskError(
            "http_status",
            f"The server answered {status}, which was not expected.",
            retryable=status in _RETRYABLE,
            after=retry_after(answer.head.headers),
        )


def _read(content: bytes, content_type: str) -> dict[str, Any]:
    kind = content_type.partition(";")[0].strip().lower()
    if not content:
        return {}
    if kind == "application/json" or kind.endswith("+json"):
        if len(content) > MAX_JSON:
            raise TaskError("too_large", f"The answer is JSON of more than {MAX_JSON >> 20} MiB; `as_file` keeps it.")
        try:
            value = strict_json.loads(content.removeprefix(b"\xef\xbb\xbf"), MAX_JSON_DEPTH)
        except Problem as problem:
            raise TaskError("bad_answer", f"The answer says that it is JSON. {problem.detail}") from None
        return {"json": value, "text": decoded(content, "charset=utf-8", markup=False)}
    if is_binary(content, content_type):
        raise TaskError("not_text", "The answer is not text; `as_file` keeps it as a file.")
    return {"text": decoded(content, content_type, markup=kind in ("text/html", "application/xhtml+xml"))}


def _name(url: str) -> str:
    return httpx.URL(url).path.rstrip("/").rsplit("/", 1)[-1] or "answer"


TASK_TYPE = TaskType(
    name="http.request",
    title="Make a request",
    description=(
        "Sends one request to a server. Private addresses are refused, at redirects too. A status that is not expected "
        "fails the task."
    ),
    inputs=(
        Field("url", "text", "Whom to ask, http or https.", example="https://api.example.com/items"),
        Field("method", "text", "How.", required=False, default="GET", choices=_METHODS),
        Field("headers", "object", "Headers to send; not sent on to another host.", required=False, secret=True),
        Field("query", "object", "Parameters for the URL's query.", required=False, example={"page": 2}),
        Field("json", "any", "A body, sent as JSON.", required=False),
        Field("body", "text", "A body, sent as it is.", required=False),
        Field(
            "expect",
            "any",
            "The statuses that are no failure; without it all of 2xx.",
            required=False,
            example=[200, 404],
        ),
        Field("follow_redirects", "boolean", "Go where the server sends us.", required=False, default=True),
        Field("as_file", "boolean", "Keep the answer as a file, whatever it is.", required=False, default=False),
    ),
    outputs=(
        Field("status", "number", "The HTTP status.", example=200),
        Field("headers", "object", "The answer's headers, in lower case, without cookies."),
        Field("json", "any", "The answer, where the server says that it is JSON; else null."),
        Field("text", "text", "The answer as text."),
        Field("file", "file", "The answer, with `as_file`; else null."),
    ),
    run=run,
    timeout=120.0,
)
