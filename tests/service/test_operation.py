"""What operators say, are given and watch: keys, a dashboard, a unit, a container, replicas of Ray,
traces."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.service.asking import IMAGES, PROMPT, SMALL, until
from tests.service.conftest import ALICE, BOB
from ttsnap.cli import serve as cli
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import ANYBODY, Keys, RequestError, ServiceLimits
from ttsnap.service.monitoring import Batch, Metrics
from ttsnap.service.server import KERNELS, TRACED, traces_of_environment
from ttsnap.service.tracing import Traces, provider_of_environment

DOCS = Path(__file__).parents[2] / "docs"


def test_the_dashboard_asks_for_metrics_that_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1)
    metrics = Metrics()
    metrics.requests.labels("done").inc()
    metrics.jobs.labels("queued").set(1)
    metrics.ran(Batch(1.0, 4, 8, {"denoise": 1.0}))
    lines = re.findall(r"^(ttsnap_\w+)(\{[^}]*\})? \S+$", metrics.text().decode(), re.M)
    there = {name: set(re.findall(r"(\w+)=", labels)) for name, labels in lines}
    board = json.loads((DOCS / "_static" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"][1:]]
    named = set(re.findall(r"\bttsnap_\w+", " ".join(queries)))
    assert named <= there.keys()
    for query in queries:
        for labels in re.findall(r"by \((\w+)\)", query):
            (metric,) = set(re.findall(r"\bttsnap_\w+", query))
            assert labels in {*there[metric], "instance"}, "Prometheus itself adds the instance"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "instance"}


def block(language):
    """The only one of this language in the how-to of its operators."""
    text = (DOCS / "howto" / "operate_service.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return str(found)


def test_the_systemd_unit_is_one_that_systemd_takes(tmp_path):
    """Parsed always, and by systemd itself where that is there; its flags are those of the
    command."""
    text = block("ini")
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, command, *given = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, command) == ("ttsnap", "serve")
    cli.parser().parse_args(given)
    assert float(unit["Service"]["TimeoutStopSec"]) > 30 + 10, "a drain and its grace"
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    there = tmp_path / "ttsnap.service"
    there.write_text(text.replace(program, "/bin/true"))  # systemd looks for the program
    told = subprocess.run(
        [analyze, "verify", "--man=no", there], capture_output=True, text=True, timeout=60
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_the_container_starts_what_there_is():
    lines = (DOCS.parent / "Dockerfile").read_text(encoding="utf-8").splitlines()
    said = dict(line.partition(" ")[::2] for line in lines)
    start = json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"])
    assert start[:2] == ["ttsnap", "serve"]
    cli.parser().parse_args(start[2:])
    (state,) = [start[i + 1] for i, word in enumerate(start) if word == "--state"]
    assert any(Path(state).is_relative_to(volume) for volume in json.loads(said["VOLUME"]))


@pytest.mark.parametrize(("kind", "package"), [("WanPipeline", "ftfy"), ("LTXPipeline", "PyAV")])
def test_what_an_extra_lacks_is_said_before_a_model_is_loaded(monkeypatch, tmp_path, kind, package):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    if package == "ftfy":
        monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan.is_ftfy_available", lambda: False)
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    given = [str(tmp_path), "--rewards", "brightness", "--state", str(tmp_path / "state")]
    with pytest.raises(ValueError, match=rf"{package}.*pip install 'av>="):
        cli.run(cli.parser().parse_args(given))


@pytest.mark.parametrize(("given", "expected"), [(None, "256"), ("64", "64")])
def test_the_service_bounds_what_onednn_keeps_unless_the_operator_does(
    monkeypatch, tmp_path, given, expected
):
    name, _ = KERNELS
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="none"):  # before any model is loaded
        cli.run(
            cli.parser().parse_args(["embedded", "--searches", f"mine={tmp_path / 'none.json'}"])
        )
    assert os.environ[name] == expected


# --- API keys: read from a file, compared without telling, never shown ----------------------------


def test_callers_are_known_by_their_keys(tmp_path):
    (tmp_path / "keys").write_text(f"# ours\nalice {ALICE}\n\nbob {BOB}  # theirs\n")
    keys = Keys.read(tmp_path / "keys")
    assert (keys.caller(f"Bearer {ALICE}"), keys.caller(f"bearer {BOB}")) == ("alice", "bob")
    for header in (
        None,
        "",
        "Bearer",
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        ALICE,
        "Bearer \udcff\u00e9",
    ):
        with pytest.raises(RequestError) as error:
            keys.caller(header)
        assert error.value.status == 401
    assert ALICE not in repr(keys)
    assert Keys.of(ALICE).caller(f"Bearer {ALICE}") == "default"
    assert Keys().caller(None) == ANYBODY


def test_a_file_that_changes_is_read_again(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"alice {ALICE}\n")
    keys = Keys.read(path)
    assert keys.names == {"alice"}
    path.write_text(f"alice {ALICE}\nbob {BOB}\n")
    assert (keys.caller(f"Bearer {ALICE}"), keys.caller(f"Bearer {BOB}")) == ("alice", "bob")
    for broken in ("bob", ""):
        path.write_text(broken)
        assert keys.names == {"alice", "bob"}, "they stay as they were"
    path.unlink()
    os.mkfifo(path)
    assert keys.names == {"alice", "bob"}, "a pipe is not waited for"
    assert caplog.text.count("API keys stay as they were") == 3
    path.unlink()
    for _ in range(2):
        assert keys.names == set(), "without a file nobody is let in"
        with pytest.raises(RequestError):
            keys.caller(f"Bearer {ALICE}")
    assert caplog.text.count("nobody is let in") == 1
    path.write_text(f"bob {BOB}\n")
    assert keys.names == {"bob"}
    assert not [key for key in (ALICE, BOB) if key in caplog.text]
    fixed = replace(keys, file=None)
    path.write_text(f"alice {ALICE}\n")
    assert fixed.names == {"bob"}


# --- replicas of Ray Serve ------------------------------------------------------------------------


def test_what_the_operator_says_is_checked_before_a_replica_starts():
    pytest.importorskip("ray.serve")
    from ray.serve.schema import ServeDeploySchema

    from ttsnap.cli.replicas import app

    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(block("yml"))).applications
    assert application.import_path == "ttsnap.cli.replicas:app"
    cli.parser().parse_args(shlex.split(application.args["options"]))
    with pytest.raises(ValueError, match="--database"):
        app({"options": "embedded --device cpu"})
    with pytest.raises(ValueError, match="model"):
        app({"model": "embedded"})


def test_the_compose_file_starts_servers_that_share_a_database():
    services = yaml.safe_load(block("yaml"))["services"]
    a = cli.parser().parse_args(services["service"]["command"][1:])
    assert a.database.startswith("postgresql+psycopg://ttsnap@database/")
    assert services["service"]["deploy"] == {"replicas": 3}


# --- traces: spans of requests and jobs, in the caller's trace, without prompts -------------------


REQUEST = f"POST {IMAGES}"
CALLER = "0af7651916cd43dd8448eb211c80319c"


class Spans(InMemorySpanExporter):
    """What was written, since a test began."""

    def of(self, *names):
        return [span for span in self.get_finished_spans() if span.name in names]

    def only(self, *names):
        """The one span of each name, once they are there."""
        until(lambda: all(self.of(name) for name in names))
        assert len(self.of(*names)) == len(names)
        return [self.of(name)[0] for name in names]


@pytest.fixture(scope="module")
def traced(serving, tmp_path_factory):
    spans, provider = Spans(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    store = JobStore(tmp_path_factory.mktemp("jobs"), ServiceLimits())
    return serving(traces=Traces(provider), store=store), spans


@pytest.fixture
def caller(traced):
    return traced[0]


@pytest.fixture
def spans(traced):
    traced[1].clear()
    return traced[1]


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


def test_a_request_is_a_span_of_its_callers_trace_with_its_search_inside(caller, spans):
    headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}
    caller.ask("POST", IMAGES, headers, json={"prompt": PROMPT, **SMALL})
    for path in ("/metrics", "/health"):
        caller.get(path)
    request, search = spans.only(REQUEST, "search")
    assert f"{request.context.trace_id:032x}" == CALLER
    assert parent_of(search) == request.context.span_id
    about = request.attributes
    assert (about["http.response.status_code"], about["ttsnap.search"]) == (200, "best-of-n")
    assert (about["ttsnap.rewards"], about["ttsnap.key"]) == (("scenes",), "anybody")
    assert search.attributes["ttsnap.nfe"] == 16
    (begun,) = search.events
    assert search.start_time <= begun.timestamp <= search.end_time
    assert len(spans.get_finished_spans()) == 2
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert not any(word in told for word in ("crosses", "green"))


def test_what_is_refused_or_left_ends_its_spans(caller, spans):
    assert caller.send(**{**SMALL, "budget": "1nfe"}).status_code == 400
    request, refused = spans.only(REQUEST, "search")
    assert request.attributes["http.response.status_code"] == 400
    assert refused.attributes["ttsnap.outcome"] == "refused"
    assert not refused.events
    spans.clear()
    caller.left()
    (search,) = spans.only("search")
    assert search.attributes["ttsnap.outcome"] == "cancelled"
    assert not caller.worker._observers[1]._spans  # type: ignore[attr-defined]


def test_a_job_is_a_trace_of_its_own(caller, spans):
    caller.begun()
    job, search, request = spans.only("job", "search", REQUEST)
    assert job.parent is None
    assert parent_of(search) == job.context.span_id
    assert request.context.trace_id != job.context.trace_id


def test_neither_unknown_paths_nor_words_of_errors_are_written(caller, spans, monkeypatch):
    monkeypatch.setattr("ttsnap.service.app.get_swagger_ui_html", lambda **_: int("a secret"))
    caller.get("/v1/secret-path?key=hidden")
    assert "failed: ValueError" in caller.get("/docs?key=hidden").json()["error"]["message"]
    _, failed = spans.only("GET", "GET /docs")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, None)
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert not [word for word in ("secret", "hidden", "127.0.0.1", "httpx") if word in told]


def test_the_environment_says_whether_and_where_to(monkeypatch):
    for name in TRACED:
        monkeypatch.delenv(name, raising=False)
    assert traces_of_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match="zipkin"):
        traces_of_environment()
    for exporter, off, there in (
        ("none", "", False),
        ("console", "", True),
        ("console", "true", False),
    ):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
        monkeypatch.setenv("OTEL_SDK_DISABLED", off)
        assert (traces_of_environment() is not None) is there
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    for given, name in (("images", "images"), ("", "ttsnap")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
        assert provider_of_environment().resource.attributes["service.name"] == name


def test_spans_go_to_the_collector_that_the_environment_names(
    monkeypatch,
):
    sent = []

    def export(exporter, batch):
        sent.extend((exporter._endpoint, span.name) for span in batch)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr("ttsnap.service.tracing.OTLPSpanExporter.export", export)
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    traces = traces_of_environment()
    assert traces is not None
    traces.tracer.start_span("search").end()
    traces.provider.force_flush()
    assert sent == [("http://127.0.0.1:9/v1/traces", "search")]
