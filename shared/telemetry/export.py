"""Sends spans to a collector by OTLP over HTTP, from a thread. Imported only where spans are made.

A collector that is away costs spans, and nothing else: they are counted, and said once.
"""

import logging
from collections.abc import Sequence
from uuid import uuid4

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from shared.telemetry.metrics import SPANS_LOST

SEND_EVERY = 1.0  # seconds
SEND_SECONDS = 3  # for one batch, with its repetitions

log = structlog.get_logger(__name__)


def provider(endpoint: str, service: str, ratio: float) -> TracerProvider:
    by_ratio = TraceIdRatioBased(ratio)
    made = TracerProvider(
        sampler=ParentBased(by_ratio, remote_parent_sampled=by_ratio),  # no caller makes us keep more than our ratio
        resource=Resource({"service.name": service, "service.instance.id": str(uuid4())}),
        shutdown_on_exit=False,  # a collector that is away must not hold up our end
    )
    made.add_span_processor(BatchSpanProcessor(_Sender(endpoint), schedule_delay_millis=SEND_EVERY * 1000))
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # several lines a second while a collector is away
    return made


class _Sender(SpanExporter):
    def __init__(self, endpoint: str) -> None:
        self._exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=SEND_SECONDS)
        self._endpoint = endpoint
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            SPANS_LOST.inc(len(spans))
        if failed != self._is_away:
            self._is_away = failed
            if failed:
                log.warning("spans_not_sent", collector=self._endpoint)
            else:
                log.info("spans_sent_again", collector=self._endpoint)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # as it comes
