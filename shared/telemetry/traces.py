"""Spans, and the trace that a request and its jobs belong to, in the words of OpenTelemetry and W3C Trace Context.

A trace has an id whether spans are exported or not: logs bear it, and `traceparent` carries it to jobs and to other
processes. Without `start` nothing else happens: no span is made, no exporter is imported, no thread runs. What a span
says is ours: ids, kinds and codes, never a user's text, and of an exception only its code.
"""

import functools
import random
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from shared import log
from shared.jobs.outcomes import StepError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
LONGEST = 200  # characters of an attribute
Attribute = str | int | float | bool | UUID | None

P = ParamSpec("P")
T = TypeVar("T")
Async = Callable[P, Coroutine[Any, Any, T]]

_ids = random.SystemRandom()  # also in the processes that are forked from us
_tracer: trace.Tracer | None = None
_provider: "TracerProvider | None" = None


def start(endpoint: str | None, *, service: str, ratio: float = 1.0) -> None:
    """Export spans to an OTLP/HTTP collector at this base address (None: do nothing).

    `ratio` of all traces (0 to 1) is kept, chosen by the trace's id: every service with the same ratio keeps the same
    ones. A job follows what was chosen for the request that made it.
    """
    global _tracer, _provider
    if endpoint is None:
        return
    from shared.telemetry.export import provider

    _provider = provider(endpoint, service, ratio)
    _tracer = _provider.get_tracer("stepway")


def stop(seconds: float = 1.0) -> None:
    """Send what is left, for so many seconds at most."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        ending = threading.Thread(target=provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(seconds)


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    remote: bool = False,
    root: bool = False,
    kind: SpanKind = SpanKind.INTERNAL,
    **attributes: Attribute,
) -> Iterator[Span]:
    """A span for the length of the block, under the present one or under `parent` (a `traceparent`; a broken one counts
    as none). `remote`: it came with a request. `root`: begin a trace where there is none.

    `name` and `attributes` (shown as `stepway.…`) are of our own making, with few different values in names.
    """
    given = parse(parent, remote=remote)
    begins = given is not None or root
    if _tracer is None:
        if given is None and root and not trace.get_current_span().get_span_context().is_valid:
            given = SpanContext(_ids.getrandbits(128) or 1, _ids.getrandbits(64) or 1, is_remote=False)
        if given is None:
            yield trace.get_current_span()
            return
        made: Span = NonRecordingSpan(given)
    else:
        above = None if given is None else trace.set_span_in_context(NonRecordingSpan(given))
        shown = {f"stepway.{key}": _plain(value) for key, value in attributes.items() if value is not None}
        made = _tracer.start_span(name, above, kind, shown)
    attached = contexts.attach(trace.set_span_in_context(made))
    logged = log.TRACE_ID.set(f"{made.get_span_context().trace_id:032x}") if begins else None
    try:
        yield made
    except BaseException as error:
        fail(made, outcome_of(error))
        raise
    finally:
        if logged is not None:
            log.TRACE_ID.reset(logged)
        contexts.detach(attached)
        if _is_ours(made):
            made.end()


def traced(name: str) -> Callable[[Async[P, T]], Async[P, T]]:
    """A span around each call of an async function."""

    def wrap(function: Async[P, T]) -> Async[P, T]:
        @functools.wraps(function)
        async def within(*args: P.args, **kwargs: P.kwargs) -> T:
            with span(name):
                return await function(*args, **kwargs)

        return within

    return wrap


def note(**attributes: Attribute) -> None:
    """Add to the present span, if there is one that is kept."""
    present = trace.get_current_span()
    for key, value in attributes.items() if present.is_recording() else ():
        if value is not None:
            present.set_attribute(f"stepway.{key}", _plain(value))


def fail(made: Span, code: str) -> None:
    if made.is_recording():
        made.set_attribute("error.type", code)
        made.set_status(StatusCode.ERROR)


def traceparent() -> str | None:
    """The present span for others to go on from; None outside of any trace."""
    return traceparent_of(trace.get_current_span())


def traceparent_of(made: Span) -> str | None:
    present = made.get_span_context()
    if not present.is_valid:
        return None
    return f"00-{present.trace_id:032x}-{present.span_id:016x}-{present.trace_flags & TraceFlags.SAMPLED:02x}"


def outgoing() -> dict[str, str]:
    """Headers for a request to another part of Stepway."""
    present = traceparent()
    return {} if present is None else {"traceparent": present}


def parse(value: str | None, *, remote: bool = False) -> SpanContext | None:
    """What a `traceparent` names; None for one that is not in W3C's form."""
    match = TRACEPARENT.fullmatch(value) if value is not None and len(value) <= LONGEST else None
    if match is None or (value is not None and value.startswith("00-") and match[4]):
        return None
    flags = TraceFlags(int(match[3], 16) & TraceFlags.SAMPLED)
    found = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=remote, trace_flags=flags)
    return found if found.is_valid else None


def outcome_of(error: BaseException) -> str:
    """A word for how something ended: a step's code, or what kind of an end it was. Never an exception's text."""
    if isinstance(error, StepError):
        return error.code
    if isinstance(error, TimeoutError):
        return "timed_out"
    own = getattr(type(error), "outcome", None)  # of those that end a run in an orderly way
    if isinstance(own, str):
        return own
    return "internal" if isinstance(error, Exception) else "stopped"


def _plain(value: str | float | bool | UUID) -> str | float | bool:
    return str(value)[:LONGEST] if isinstance(value, str | UUID) else value


def _is_ours(made: Span) -> bool:
    return not isinstance(made, NonRecordingSpan)
