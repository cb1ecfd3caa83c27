"""Structured logs: JSON for machines, colours for a terminal. The ids of the request, the trace, the
workflow and the job are context variables.

Every event passes `mask_secrets`: values under telling keys, bearer tokens and passwords in URLs are never written. The
text of an exception is cut where it would quote what a user sent: validation faults and the values in an SQL error.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.types import EventDict, ExcInfo, Processor

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # set for each request, so it is not slow
TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)  # by `shared.telemetry.traces`
MASK = "***"
SECRET_WORDS = frozenset(
    [
        "token",
        "key",
        "apikey",
        "secret",
        "secrets",
        "password",
        "passwd",
        "passphrase",
        "authorization",
        "kubeconfig",
        "cookie",
        "credentials",
    ]
)
# `key_id`, `token_count` and the like tell about a secret, not the secret.
HARMLESS_ENDINGS = frozenset(
    ["id", "ids", "count", "name", "type", "path", "file", "index", "prefix", "expires", "hash", "kind"]
)
IN_TEXT = re.compile(r"(?i)(\bbearer\s+)[\w.~+/=\-]+|(\w://[^\s/:@]*:)[^\s/@]+(?=@)")
WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
MAX_NESTING = 8
MAX_EXCEPTION_TEXT = 2000  # characters


def configure(*, json: bool | None = None, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging alike. `json=None`: JSON unless `stream` is a terminal."""
    stream = stream or sys.stderr
    as_json = not stream.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.ExceptionRenderer(_exception_text),
        mask_secrets,
        structlog.processors.JSONRenderer() if as_json else _console(stream.isatty()),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # It warns of every malformed form that a client sends.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bound(**ids: object) -> AbstractContextManager[None]:
    """Within the block every event carries `ids`, e.g. job_id."""
    bound_here: AbstractContextManager[None] = bound_contextvars(**ids)
    return bound_here


def request_id() -> str | None:
    """The id of the request that is being answered."""
    return REQUEST_ID.get()


def _add_ids(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for name, known in (("request_id", REQUEST_ID.get()), ("trace_id", TRACE_ID.get())):
        if known is not None:
            event.setdefault(name, known)
    return event


def mask_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """structlog processor: see the module."""
    return {key: _masked(key, value, 0) for key, value in event.items()}


def is_secret(key: str) -> bool:
    """Whether the name of a field says that its value must not be shown."""
    words = [word.lower() for word in WORDS.findall(key)]
    return bool(words) and words[-1] not in HARMLESS_ENDINGS and not SECRET_WORDS.isdisjoint(words)


def _console(colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


def _exception_text(exc_info: ExcInfo) -> str:
    return "\n".join(_exception_lines(exc_info[1]))


def _exception_lines(error: BaseException | None) -> Iterator[str]:
    """The chain of causes, outermost first, then the members of a group."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if seen:
            yield "caused by:"
        seen.add(id(error))
        yield from (line.rstrip("\n") for line in traceback.format_tb(error.__traceback__))
        yield f"{type(error).__qualname__}: {_said(error)}"
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield "member:"
                yield from _exception_lines(member)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _said(error: BaseException) -> str:
    # By their shape, so that this module needs no database driver and no web framework.
    faults = getattr(error, "errors", None)
    if callable(faults):
        return ", ".join(f"{detail.get('type')} at {_path(detail)}" for detail in faults() if isinstance(detail, dict))
    diagnostics = getattr(getattr(error, "orig", error), "diag", None)
    if diagnostics is not None:
        # Class 22 (data exceptions) quotes the data even in its first line.
        state = diagnostics.sqlstate or ""
        return f"{state} {'' if state.startswith('22') else diagnostics.message_primary or ''}".strip()
    return str(error)[:MAX_EXCEPTION_TEXT]


def _path(detail: dict[str, Any]) -> str:
    return ".".join(str(part) for part in detail.get("loc", ()))


def _masked(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and is_secret(key) and value not in (None, "", True, False):
        return MASK
    if isinstance(value, str):
        return IN_TEXT.sub(_hide, value)
    if depth >= MAX_NESTING:
        return MASK if isinstance(value, dict | list | tuple) else value
    if isinstance(value, dict):
        return {name: _masked(name, item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(None, item, depth + 1) for item in value]
    return value


def _hide(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}{MASK}"
