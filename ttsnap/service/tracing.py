"""Traces for OpenTelemetry: where each request waited, and what the device did for it. No trace
holds a prompt.

    POST /v1/images/generations        the request, in the caller's trace where it sends a traceparent
      search                           until its answer is there; `begun` is when it need wait no more

A job has a span `job` of its own in place of the request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Span, StatusCode, set_span_in_context

from ttsnap.core.names import unknown
from ttsnap.service.monitoring import Observer
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


class Traces(Observer):
    """Writes spans of the requests of one worker."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("ttsnap.service", __version__)
        self._spans: dict[PendingRequest, tuple[Span, Span]] = {}
        """Of the request or the job, and of its search."""

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
        span = self.tracer.start_span("search", set_span_in_context(parent))
        self._spans[ticket] = (parent, span)

    def begun(self, ticket: PendingRequest) -> None:
        _, search = self._spans[ticket]
        search.add_event("begun")

    def ended(self, ticket: PendingRequest, outcome: str) -> None:
        parent, search = self._spans.pop(ticket)
        search.set_attributes({"ttsnap.outcome": outcome, "ttsnap.nfe": ticket.nfe})
        for span in (search, parent) if ticket.job else (search,):
            if outcome == "failed":
                span.set_status(StatusCode.ERROR)
            span.end()


def _hide(span: Span, scope: Mapping[str, Any]) -> None:
    """Empty what a request wrote of itself: its address may hold a prompt or a key."""
    for name in getattr(span, "attributes", None) or {}:
        if name not in SHOWN:
            span.set_attribute(name, "")
