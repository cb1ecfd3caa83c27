"""`web.download`: the text of a web page."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from services.flow.bounded import size_of
from services.flow.openai_calls import retry_after
from services.flow.texts import decoded, is_binary
from stepway.tasks import Context, Fetched, Field, TaskError, TaskType

DEFAULT_BYTES = 16 * 1024**2
MAX_BYTES = 64 * 1024**2
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_TEXTUAL = ("text/", "application/xhtml+xml", "application/xml", "application/json", "application/javascript")
_UNSAID = ("", "application/octet-stream", "binary/octet-stream", "unknown/unknown")


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    limit = inputs.get("max_bytes")
    limit = DEFAULT_BYTES if limit is None else limit
    if not 1 <= limit <= MAX_BYTES:
        raise TaskError("bad_limit", f"`max_bytes` is from 1 to {MAX_BYTES} ({size_of(MAX_BYTES)}).")
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"} | (inputs.get("headers") or {})
    async with context.request("GET", inputs["url"], headers=headers, limit=int(limit)) as answer:
        check_status(answer.head)
        content_type = answer.head.headers.get("content-type", "")
        _check_type(content_type)
        body = await answer.read()
    if is_binary(body, content_type):
        raise TaskError("not_text", "What is at the address is not text, but a file of another kind.")
    text = decoded(body, content_type)
    return {
        "html": text,
        "html_content": text,
        "status": answer.head.status,
        "final_url": answer.head.url,
        "content_type": content_type[:200],
    }


def check_status(head: Fetched) -> None:
    """Raises `TaskError` (`http_status`) unless it is a success."""
    if 200 <= head.status < 300:
        return
    try:
        phrase = f"{head.status} {HTTPStatus(head.status).phrase}"
    except ValueError:
        phrase = str(head.status)
    raise TaskError(
        "http_status",
        f"The server answered {phrase}.",
        retryable=head.status in _RETRYABLE,
        after=retry_after(head.headers),
    )


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _UNSAID or kind.startswith(_TEXTUAL) or kind.endswith(("+xml", "+json")):
        return
    shown = kind[:80] if kind.isprintable() else "something else"
    raise TaskError("not_text", f"What is at the address is {shown}, not a page; http.request can keep it as a file.")


TASK_TYPE = TaskType(
    name="web.download",
    title="Download a page",
    description="Downloads a web page and decodes it, whatever its encoding. Other answers than 2xx fail the task.",
    inputs=(
        Field("url", "text", "The page's address, http or https.", example="https://example.com"),
        Field("headers", "object", "Headers to send; not sent on to another host.", required=False, secret=True),
        Field("max_bytes", "number", "The largest page that is taken.", required=False, default=DEFAULT_BYTES),
    ),
    outputs=(
        Field("html", "text", "The page."),
        Field("html_content", "text", "The same."),
        Field("status", "number", "The HTTP status.", example=200),
        Field("final_url", "text", "Where the page was, after redirects."),
        Field("content_type", "text", "As the server says.", example="text/html; charset=utf-8"),
    ),
    run=run,
    timeout=120.0,
    attempts=3,
)
