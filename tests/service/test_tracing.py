"""Traces: spans of requests and jobs, in the caller's trace, without prompts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.service.conftest import client_of, until
from ttsnap.service import opening
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer
from ttsnap.service.tracing import Traces, provider_of_environment

PROMPT = "two green crosses"
OWN = {"budget": "12nfe", "search": "best-of-n", "steps": 4}
CALLER = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(
    serving: Callable[..., GenerationServer], spans: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory
) -> GenerationServer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    store = JobStore(tmp_path_factory.mktemp("jobs"), ServiceLimits())
    return serving(traces=Traces(provider), store=store)


@pytest.fixture(autouse=True)
def _none_yet(spans: InMemorySpanExporter) -> None:
    spans.clear()


def of(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def number(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def test_a_request_is_a_span_of_its_callers_trace_with_its_search_inside(
    traced: GenerationServer, spans: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}
    client_of(traced).images.generate(prompt=PROMPT, extra_body=OWN, extra_headers=headers)
    httpx.get(f"{traced.url}/metrics")
    httpx.get(f"{traced.url}/health")
    until(lambda: of(spans, "POST /v1/images/generations") and of(spans, "search"))
    (request,), (queue,), (search,) = (of(spans, name) for name in ("POST /v1/images/generations", "queue", "search"))
    assert f"{request.context.trace_id:032x}" == CALLER
    assert parent_of(queue) == parent_of(search) == number(request)
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert (request.attributes["ttsnap.search"], request.attributes["ttsnap.rewards"]) == ("best-of-n", ("scenes",))
    batches = of(spans, "batch")
    assert search.attributes is not None
    assert search.attributes["ttsnap.nfe"] == 12 == sum(span.attributes["ttsnap.nfe"] for span in batches)
    assert search.attributes["ttsnap.batches"] == len(batches) == 4
    assert {parent_of(span) for span in batches} == {number(search)}
    assert {parent_of(span) for span in of(spans, "denoise")} == set(map(number, batches))
    assert {parent_of(span) for span in of(spans, "reward")} == {number(batches[-1])}
    for span in batches:
        inside = [part for part in spans.get_finished_spans() if parent_of(part) == number(span)]
        assert all(span.start_time <= part.start_time <= part.end_time <= span.end_time for part in inside)
    assert queue.end_time <= search.start_time
    names = Counter(span.name for span in spans.get_finished_spans())
    assert names.keys() == {"POST /v1/images/generations", "queue", "search", "batch", "denoise", "decode", "reward"}
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert not any(word in told for word in ("crosses", "green"))


def test_a_batch_of_several_searches_is_written_once_with_links(
    traced: GenerationServer, spans: InMemorySpanExporter
) -> None:
    client = client_of(traced)
    with ThreadPoolExecutor(3) as pool:
        for seed in range(3):
            own = {**OWN, "seed": seed, "budget": "120nfe"}
            pool.submit(client.images.generate, prompt=PROMPT, extra_body=own)
    until(lambda: len(of(spans, "POST /v1/images/generations")) == len(of(spans, "search")) == 3)
    searches = {number(span): span for span in of(spans, "search")}
    shared = [span for span in of(spans, "batch") if span.links]
    assert shared
    for span in shared:
        linked = {link.context.span_id for link in span.links} | {parent_of(span)}
        assert span.attributes is not None
        assert len(linked) == span.attributes["ttsnap.searches"] > 1
        assert linked <= searches.keys()
    assert sum(span.attributes["ttsnap.nfe"] for span in of(spans, "batch")) == 360


def test_what_is_refused_or_left_ends_its_spans(traced: GenerationServer, spans: InMemorySpanExporter) -> None:
    with pytest.raises(openai.BadRequestError):
        client_of(traced).images.generate(prompt=PROMPT, extra_body={**OWN, "budget": "1nfe"})
    until(lambda: of(spans, "POST /v1/images/generations") and of(spans, "queue"))
    (request,), (queue,) = of(spans, "POST /v1/images/generations"), of(spans, "queue")
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 400
    assert queue.attributes is not None
    assert queue.attributes["ttsnap.outcome"] == "refused"
    assert not of(spans, "search")
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{traced.url}/v1/images/generations", json={"prompt": PROMPT, "budget": "4000nfe"}, timeout=0.5)
    until(lambda: of(spans, "search"))
    (search,) = of(spans, "search")
    assert search.attributes is not None
    assert search.attributes["ttsnap.outcome"] == "cancelled"
    assert not traced.worker._observers[1]._spans  # type: ignore[attr-defined]


def test_a_job_is_a_trace_of_its_own(traced: GenerationServer, spans: InMemorySpanExporter) -> None:
    client_of(traced).images.generate(prompt=PROMPT, extra_body={**OWN, "background": True})
    until(lambda: of(spans, "job"))
    (job,), (queue,), (search,) = (of(spans, name) for name in ("job", "queue", "search"))
    assert job.parent is None
    assert parent_of(queue) == parent_of(search) == number(job)
    (request,) = of(spans, "POST /v1/images/generations")
    assert request.context.trace_id != job.context.trace_id


def test_a_path_that_is_not_there_is_not_written(traced: GenerationServer, spans: InMemorySpanExporter) -> None:
    httpx.get(f"{traced.url}/v1/secret-path?key=hidden")
    until(lambda: spans.get_finished_spans())
    (span,) = spans.get_finished_spans()
    assert (span.name, "secret" in span.to_json(), "hidden" in span.to_json()) == ("GET", False, False)


def test_the_words_of_an_error_are_not_written(
    traced: GenerationServer, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.service.app.get_swagger_ui_html", lambda **_: int("a secret"))
    reply = httpx.get(f"{traced.url}/docs?key=hidden")
    assert reply.json()["error"]["message"] == "the service failed: ValueError"
    until(lambda: spans.get_finished_spans())
    (span,) = spans.get_finished_spans()
    assert (span.name, span.status.status_code, span.status.description) == ("GET /docs", StatusCode.ERROR, None)
    assert not [word for word in ("secret", "hidden", "127.0.0.1", "httpx") if word in span.to_json()]


def test_the_environment_says_whether_and_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in opening.TRACED:
        monkeypatch.delenv(name, raising=False)
    assert opening.traces_of_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match="zipkin"):
        opening.traces_of_environment()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert opening.traces_of_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert opening.traces_of_environment() is not None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert opening.traces_of_environment() is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "images")
    assert provider_of_environment().resource.attributes["service.name"] == "images"
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert provider_of_environment().resource.attributes["service.name"] == "ttsnap"


def test_spans_arrive_by_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a collector that the environment names, as OpenTelemetry's own message."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[tuple[str, bytes]] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].split()[0])
        bodies.append((head.split()[1], await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def sent() -> None:
        async with await asyncio.start_server(collect, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
            traces = opening.traces_of_environment()
            assert traces is not None
            traces.tracer.start_span("queue").end()
            await asyncio.to_thread(traces.provider.force_flush)

    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    asyncio.run(sent())
    ((path, body),) = bodies
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["queue"]
