"""Prometheus series of the gateway. Endpoints are labels only once access to them was granted, so that nobody can
make series by guessing ids; an endpoint's series go when it leaves the table."""

from collections import Counter as Counts
from uuid import UUID

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.gateway.table import Route
from services.gateway.usage import Usage

_FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "stepway_gateway_requests_total",
            "Requests that have ended.",
            ("endpoint", "operation", "status_class"),
            registry=registry,
        )
        self.broken = Counter(
            "stepway_gateway_broken_answers_total",
            "Answers that ended with an error after their first byte.",
            ("endpoint", "code"),
            registry=registry,
        )
        self.in_flight = Gauge(
            "stepway_gateway_in_flight", "Requests with access that have not ended.", ("endpoint",), registry=registry
        )
        self.first_byte = Histogram(
            "stepway_gateway_first_byte_seconds",
            "From the request to the first byte of a worker's answer.",
            ("endpoint",),
            buckets=_FIRST_BYTE_BUCKETS,
            registry=registry,
        )
        self.duration = Histogram(
            "stepway_gateway_duration_seconds",
            "From the request to the end of the answer.",
            ("endpoint",),
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.bytes = Counter(
            "stepway_gateway_sent_bytes_total", "Bytes of answers' bodies.", ("endpoint",), registry=registry
        )
        self.tokens = Counter(
            "stepway_gateway_tokens_total",
            "Tokens as the workers counted them, of answers that tell.",
            ("endpoint", "direction"),
            registry=registry,
        )

        self._live: Counts[UUID] = Counts()
        self._gone: set[UUID] = set()

    def began(self, endpoint_id: UUID) -> None:
        self._live[endpoint_id] += 1
        self.in_flight.labels(str(endpoint_id)).inc()

    def ended(self, usage: Usage) -> None:
        endpoint = "" if usage.endpoint_id is None else str(usage.endpoint_id)
        self.requests.labels(endpoint, usage.operation, f"{usage.status // 100}xx").inc()
        if usage.endpoint_id is None:
            return
        self.in_flight.labels(endpoint).dec()
        self.duration.labels(endpoint).observe(usage.ended - usage.started)
        self.bytes.labels(endpoint).inc(usage.bytes)
        if usage.prompt_tokens or usage.completion_tokens:
            self.tokens.labels(endpoint, "prompt").inc(usage.prompt_tokens)
            self.tokens.labels(endpoint, "completion").inc(usage.completion_tokens)
        if usage.first_byte_at is not None:
            self.first_byte.labels(endpoint).observe(usage.first_byte_at - usage.started)
            if usage.error is not None:
                self.broken.labels(endpoint, usage.error).inc()
        self._live[usage.endpoint_id] -= 1
        self._drop_if_gone(usage.endpoint_id)

    def route_changed(self, endpoint_id: UUID, route: Route | None) -> None:
        """A listener of the table: drops what is kept of an endpoint that has gone, once its last request has ended."""
        if route is None:
            self._gone.add(endpoint_id)
            self._drop_if_gone(endpoint_id)
        else:
            self._gone.discard(endpoint_id)

    def _drop_if_gone(self, endpoint_id: UUID) -> None:
        if self._live[endpoint_id]:
            return
        del self._live[endpoint_id]
        if endpoint_id in self._gone:
            self._gone.discard(endpoint_id)
            every = (
                self.requests,
                self.broken,
                self.in_flight,
                self.first_byte,
                self.duration,
                self.bytes,
                self.tokens,
            )
            for series in every:
                series.remove_by_labels({"endpoint": str(endpoint_id)})
