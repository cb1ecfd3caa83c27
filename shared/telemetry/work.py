"""What engines tell of runs and steps, by one context manager each: spans, log ids and metrics. Both engines use it.

The spans of a job hang on what its row keeps (`traceparent`, of the request that made it) rather than on each other:
so they are one trace, whichever process did which part of the work, and if it died of it.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID

from opentelemetry.trace import SpanKind

from shared import log
from shared.telemetry import traces
from shared.telemetry.metrics import RUNS, STEP_SECONDS


@contextmanager
def run_span(
    job_id: UUID, kind: str, attempt: int, traceparent: str | None, *, workflow: UUID | None = None
) -> Iterator[None]:
    """Around the time in which a process drives a run. `attempt` is the job's, from 1."""
    running = RUNS.labels(kind)
    running.inc()
    try:
        with (
            _ids(job_id, kind, workflow),
            traces.span(
                f"run {kind}", parent=traceparent, root=True, kind=SpanKind.CONSUMER,
                job=job_id, job_kind=kind, attempt=attempt, workflow=workflow,
            ),
        ):  # fmt: skip
            yield
    finally:
        running.dec()


def run_ends(state: str) -> None:
    """Within `run_span`: the state that the run leaves its job in."""
    traces.note(outcome=state)


@contextmanager
def step_span(
    job_id: UUID,
    kind: str,
    key: str,
    attempt: int,
    traceparent: str | None,
    *,
    step: str | None = None,
    workflow: UUID | None = None,
    undo: bool = False,
) -> Iterator[None]:
    """Around one attempt of a step; where a service drives it, its report included.

    Needs no `run_span` around it: it may be in another process. `key` is the step's in its run, `step` the name under
    which it was declared (the same by default): metrics show that.
    """
    began, outcome, ending = time.monotonic(), "stopped", "stopped"
    verb = "undo" if undo else "step"
    with (
        _ids(job_id, kind, workflow, step=key, attempt=attempt),
        traces.span(
            f"{verb} {kind}/{step or key}", parent=traceparent, root=True,
            job=job_id, job_kind=kind, step=key, attempt=attempt, workflow=workflow,
        ),
    ):  # fmt: skip
        try:
            yield
            outcome = ending = "succeeded"
        except Exception as error:
            outcome = traces.outcome_of(error)
            ending = "stopped" if hasattr(type(error), "outcome") else "failed"
            raise
        finally:
            traces.note(outcome=outcome)
            if not undo:
                STEP_SECONDS.labels(kind, step or key, ending).observe(time.monotonic() - began)


def _ids(job_id: UUID, kind: str, workflow: UUID | None, **more: object) -> AbstractContextManager[None]:
    known = {} if workflow is None else {"workflow": str(workflow)}
    return log.bound(job=str(job_id), kind=kind, **known, **more)
