"""Traces for OpenTelemetry: where each request waited, and what the device did for it. No trace
holds a prompt.

    POST /v1/images/generations        the request, in the caller's trace where it sends a traceparent
      queue                            until its search begins
      search                           until its answer is there
        batch                          a batch of the model, of this search and others
          denoise, decode, reward      what the batch took of the device

A job has a span `job` of its own in place of the request. A batch is written once, into the trace
of its oldest search that is sampled, with links to the other ones. Every search counts its batches
and their seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Link, Span, StatusCode, set_span_in_context

from ttsnap.core.names import unknown
from ttsnap.service.monitoring import Batch, Observer
from ttsnap.service.tickets import PendingRequest
from ttsnap.version import __version__

EXPORTER = "OTEL_TRACES_EXPORTER"
EXPORTERS = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
UNTRACED = "/health$,/ready$,/metrics$"
"""What programs ask for every few seconds."""
SHOWN = ("http.request.method", "http.route", "url.scheme", "network.protocol.version")
"""Attributes that tell nothing of a request's address, of its client and of what it sent."""


def provider_of_environment() -> TracerProvider:
    """As the standard variables OTEL_* say. Spans that wait are sent when the process ends.

    ValueError for an exporter that is none of ours.
    """
    name = os.environ.get(EXPORTER) or "otlp"
    if name not in EXPORTERS:
        raise ValueError(f"{EXPORTER}: {unknown('exporter', name, [*EXPORTERS, 'none'])}")
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "ttsnap"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(EXPORTERS[name]()))
    return provider


@dataclass
class _Spans:
    """Of one request under way."""

    parent: Span
    """Of the request, or of the job."""
    now: Span
    """Queue, then search."""
    batches: int = 0
    seconds: float = 0.0
    """Of its batches, which others may have shared."""


class Traces(Observer):
    """Writes spans of the requests of one worker."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("ttsnap.service", __version__)
        self._spans: dict[PendingRequest, _Spans] = {}

    def watch(self, app: FastAPI) -> None:
        """Write a span for each HTTP request to an application."""
        # the names of attributes that stay
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        FastAPIInstrumentor.instrument_app(
            app,
            _hide,
            tracer_provider=self.provider,
            excluded_urls=UNTRACED,
            exclude_spans=["receive", "send"],
        )

    def queued(self, ticket: PendingRequest) -> None:
        request = ticket.request
        parent = (
            self.tracer.start_span("job", Context()) if ticket.job else trace.get_current_span()
        )
        search = (
            request.request.search
            if isinstance(request.request.search, str)
            else type(request.algorithm).__name__
        )
        parent.set_attributes(
            {
                "ttsnap.key": ticket.caller,
                "ttsnap.search": search,
                "ttsnap.rewards": [str(reward) for reward in request.rewards],
                "ttsnap.budget": str(request.budget),
                "ttsnap.images": request.selection.keep,
            }
        )
        self._spans[ticket] = _Spans(
            parent, self.tracer.start_span("queue", set_span_in_context(parent))
        )

    def begun(self, ticket: PendingRequest) -> None:
        spans = self._spans[ticket]
        spans.now.end()
        spans.now = self.tracer.start_span("search", set_span_in_context(spans.parent))

    def ran(self, batch: Batch, tickets: Sequence[PendingRequest]) -> None:
        phases = {phase: seconds for phase, seconds in batch.phases.items() if seconds > 0}
        if not phases:  # a turn in which searches only end
            return
        several = [self._spans[ticket] for ticket in tickets]
        for spans in several:
            spans.batches += 1
            spans.seconds += batch.seconds
        sampled = [spans.now for spans in several if spans.now.is_recording()]
        if not sampled:
            return
        first, *others = sampled
        about = {
            "ttsnap.nfe": batch.nfe,
            "ttsnap.places": batch.room,
            "ttsnap.searches": len(tickets),
        }
        links, at = [Link(other.get_span_context()) for other in others], int(1e9 * batch.begin)
        span = self.tracer.start_span(
            "batch", set_span_in_context(first), attributes=about, links=links, start_time=at
        )
        inside, end = set_span_in_context(span), at + int(1e9 * batch.seconds)
        for phase, seconds in phases.items():  # one after the other, as the device does them
            part = self.tracer.start_span(phase, inside, start_time=at)
            at = min(end, at + int(1e9 * seconds))
            part.end(at)
        span.end(end)

    def ended(self, ticket: PendingRequest, outcome: str) -> None:
        spans = self._spans.pop(ticket)
        spans.now.set_attributes(
            {
                "ttsnap.outcome": outcome,
                "ttsnap.nfe": ticket.nfe,
                "ttsnap.batches": spans.batches,
                "ttsnap.batch_seconds": spans.seconds,
            }
        )
        for span in (spans.now, spans.parent) if ticket.job else (spans.now,):
            if outcome == "failed":
                span.set_status(StatusCode.ERROR)
            span.end()


def _hide(span: Span, scope: Mapping[str, Any]) -> None:
    """Empty what a request wrote of itself: its address may hold a prompt or a key."""
    for name in getattr(span, "attributes", None) or {}:
        if name not in SHOWN:
            span.set_attribute(name, "")
