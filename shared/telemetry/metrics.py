"""The Prometheus series of one process. Labels have few values: routes as templates, kinds, steps, states; never ids.

What is counted here belongs to the process, so it is shared by all of its parts; `registry` puts it together with what
an assembly adds: the database (`ledger`), the gateway's own, and gauges that are read when somebody looks (`Read`).
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that nobody asks for

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_STEP_BUCKETS = (0.05, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)

REQUESTS = Counter(
    "stepway_http_requests_total", "Requests that have ended; `lost` had no answer.",
    ("route", "method", "status_class"), registry=None,
)  # fmt: skip
REQUEST_SECONDS = Histogram(
    "stepway_http_request_seconds", "From a request to the start of its answer.", ("route", "method"),
    buckets=_REQUEST_BUCKETS, registry=None,
)  # fmt: skip
STEP_SECONDS = Histogram(
    "stepway_step_seconds", "Attempts of steps, by how they ended: succeeded, failed, stopped.",
    ("kind", "step", "outcome"), buckets=_STEP_BUCKETS, registry=None,
)  # fmt: skip
RUNS = Gauge("stepway_runs", "Runs of jobs that this process drives at the moment.", ("kind",), registry=None)
JOBS_ENDED = Counter(
    "stepway_jobs_ended_total", "Ends of jobs that this process has recorded.", ("kind", "state"), registry=None
)
LEASES_LOST = Counter(
    "stepway_leases_lost_total", "How often this process was taken for dead, and lost its runs.", registry=None
)
RUNS_REAPED = Counter(
    "stepway_runs_reaped_total", "Runs of dead processes that this one has freed for others.", registry=None
)
SPANS_LOST = Counter("stepway_spans_lost_total", "Spans that the collector did not take.", registry=None)
_OF_THE_PROCESS = (REQUESTS, REQUEST_SECONDS, STEP_SECONDS, RUNS, JOBS_ENDED, LEASES_LOST, RUNS_REAPED, SPANS_LOST)


def registry(*more: Collector) -> CollectorRegistry:
    """All series of this process, with `more` of an assembly's."""
    made = CollectorRegistry()
    for collector in (*_OF_THE_PROCESS, *more):
        made.register(collector)
    ProcessCollector(registry=made)
    return made


def exposition(known: CollectorRegistry) -> bytes:
    text: bytes = generate_latest(known)
    return text


class Read(Collector):
    """A gauge that is read when it is asked for: `read` gives a number for each value of the one label."""

    def __init__(self, name: str, help: str, label: str | None, read: Callable[[], Mapping[str, float]]) -> None:
        self._family: tuple[str, str, tuple[str, ...]] = (name, help, () if label is None else (label,))
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Of no values: nothing is read before somebody asks."""
        name, text, labels = self._family
        return [GaugeMetricFamily(name, text, labels=labels)]

    def collect(self) -> Iterable[Metric]:
        name, text, labels = self._family
        family = GaugeMetricFamily(name, text, labels=labels)
        for value, number in self._read().items():
            family.add_metric([value] if labels else [], number)
        return [family]
