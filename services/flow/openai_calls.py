"""Calls to OpenAI-compatible servers, for all types of tasks that make some: the inputs that they share, the client, and
faults in the provider's own words. Answers are read by models of ours: many servers are only nearly compatible.
"""

import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from services.flow.bounded import too_large
from services.flow.fetching import causes, fault_of
from services.flow.texts import clean
from shared import clock
from shared.objects.blocking import settled
from shared.security.addresses import AddressRefused
from stepway.tasks import Context, Field, TaskError

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

T = TypeVar("T", bound=BaseModel)

TIMEOUT = 600.0  # seconds without a byte; a long answer that is not streamed comes all at its end
MAX_AFTER = 3600.0  # seconds
DEFAULT_MODEL = "gpt-4o-mini"
_MAX_WORDS = 600  # characters
_RETRYABLE = frozenset({408, 409, 429})
_RESERVED = frozenset(
    {"model", "messages", "input", "prompt", "file", "voice", "stream", "stream_options", "n", "encoding_format"}
)
_LOOKS_LIKE_A_KEY = re.compile(r"(?i)\bbearer\s+\S+|\b(?:sk|gsk|key|api)-[A-Za-z0-9_*.-]{6,}")

PROVIDER = (
    Field("endpoint", "text", "An endpoint of Stepway to call, instead of a provider.", required=False),
    Field(
        "base_url",
        "text",
        "The base URL of an OpenAI-compatible server; without it the installation's default is called.",
        required=False,
        example="https://api.openai.com/v1",
    ),
    Field(
        "credential_id",
        "text",
        "The id of a credential with the key; without it the key is the one that came with the execution.",
        required=False,
    ),
)
PARAMETERS = Field(
    "parameters",
    "object",
    "Further parameters of the request, as the provider names them.",
    required=False,
    example={"max_tokens": 150, "temperature": 0.7},
)
USAGE = Field("usage", "object", "The tokens that the provider has counted.", example={"total_tokens": 42})


def model_field(default: str | None = DEFAULT_MODEL) -> Field:
    says = "An endpoint has a model of its own." if default is None else f"Without it {default}, or an endpoint's own."
    return Field("model", "text", f"The model's name at the provider. {says}", required=False, example=default)


@asynccontextmanager
async def provider_client(context: Context, inputs: Mapping[str, Any]) -> AsyncIterator["AsyncOpenAI"]:
    """A client of the provider that the inputs name. Leaving it closes it; a fault within becomes a `TaskError`."""
    openai = await settled(_library)
    found = await context.provider(inputs)
    http_client = context.http_client(timeout=TIMEOUT)
    if not found.key:
        http_client.event_hooks = {"request": [_without_key]}  # the library insists on sending one
    try:
        client = openai.AsyncOpenAI(
            api_key=found.key or "none",
            admin_api_key="",
            base_url=found.base_url,
            http_client=http_client,
            max_retries=0,
        )
        # what the library has read from the environment is for other programs
        client.organization = client.project = None
        client._custom_headers = {}
        async with client:
            yield client
    except openai.APIError as error:
        raise _fault(error, found.key) from None
    except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as error:
        raise fault_of(error) from None
    except openai.OpenAIError as error:
        raise TaskError(
            "provider_error", f"The provider's answer cannot be used: {_words(str(error), found.key)}"
        ) from None


def _library() -> ModuleType:
    """The library with what we use of it. Not at the top, and in a thread: it takes seconds to import, in which others
    want their turn, and many processes only read what types of tasks there are.
    """
    import openai
    import openai.resources.audio
    import openai.resources.chat
    import openai.resources.embeddings

    return openai


async def _without_key(request: httpx.Request) -> None:
    request.headers.pop("Authorization", None)


def request_body(
    inputs: Mapping[str, Any], default_model: str | None = DEFAULT_MODEL, *, own: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The named arguments of a call that all have: the model, and the parameters as they are. For use with a client.

    `own`: parameters that the task has inputs for, beside those that all have. Raises `TaskError`.
    """
    from openai import omit

    parameters = inputs.get("parameters") or {}
    if taken := sorted((_RESERVED | own) & set(parameters)):
        raise TaskError("bad_parameters", f"`parameters` cannot have {', '.join(taken)}: inputs of the task say that.")
    model = inputs.get("model") or (None if inputs.get("endpoint") else default_model)
    return {"model": omit if model is None else model, "extra_body": parameters}


def understood(model: type[T], raw: bytes, limit: int = 4 * 1024**2) -> T:
    """An answer as a model of ours. Raises `TaskError`: `bad_answer`, `too_large` beyond `limit` bytes."""
    if len(raw) > limit:
        raise too_large(limit)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"]) or "the whole"
        raise TaskError(
            "bad_answer", f"The provider's answer is not as OpenAI's: {clean(where)[:100]} is wrong."
        ) from None


def usage_of(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The counts of tokens; what else a provider says about it is left out."""
    return {name: count for name, count in (answer or {}).items() if isinstance(count, int) and len(name) <= 64}


def _fault(error: "APIError", key: str) -> TaskError:
    """Says what the provider says, and nothing of the request, which has the key."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        status = error.status_code
        said = _words(_message(error.body), key)
        return TaskError(
            f"provider_{_KINDS.get(status, 'refused' if status < 500 else 'error')}",
            f"The provider answered {status}: {said}" if said else f"The provider answered {status}.",
            retryable=status in _RETRYABLE or status >= 500,
            after=retry_after(error.response.headers),
        )
    if isinstance(error, APIConnectionError):
        for cause in causes(error.__cause__ or error.__context__):
            if isinstance(cause, (TaskError, AddressRefused)):
                return fault_of(cause)
        return fault_of(_first(error))
    return TaskError("bad_answer", f"The provider's answer cannot be used: {_words(error.message, key)}")


_KINDS = {401: "key_refused", 403: "denied", 404: "not_found", 429: "busy"}


def _first(error: Exception) -> Exception:
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, Exception) else error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, at most `MAX_AFTER`; a date counts from now."""
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said) if said[:1].isdigit() else (parsedate_to_datetime(said) - clock.now()).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_AFTER) if math.isfinite(seconds) else None


def _message(body: object) -> str:
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        for found in (inner.get("message") if isinstance(inner, Mapping) else inner, body.get("detail")):
            if isinstance(found, str):
                return found
        return json.dumps(body, default=str)
    return str(body or "")


def _words(text: str, key: str) -> str:
    """The provider's words in one line, without the key, whole or in parts that providers repeat."""
    if key:
        text = text.replace(key, "***")
    text = _LOOKS_LIKE_A_KEY.sub("***", clean(text))
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if len(line) > _MAX_WORDS:
        return f"{line[:_MAX_WORDS]}…"
    return line if not line or line.endswith((".", "!", "?")) else f"{line}."
