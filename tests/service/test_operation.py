"""What operators are given, held to the service as it is: the dashboard, the systemd unit, the container file."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from ttsnap.cli import serve
from ttsnap.service.monitoring import Batch, Metrics
from ttsnap.service.opening import KERNELS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_dashboard_asks_for_metrics_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1)
    metrics = Metrics()
    metrics.requests.labels("done").inc()
    metrics.jobs.labels("queued").set(1)
    metrics.loras.labels("loaded").inc()
    metrics.ran(Batch(0.0, 1.0, 4, 8, {"denoise": 1.0}), ())
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


def block(language: str) -> str:
    """The only one of this language in the how-to of its operators."""
    (found,) = re.findall(
        rf"^```{language}\n(.*?)^```$", (DOCS / "howto" / "operate_service.md").read_text(), re.M | re.S
    )
    return str(found)


def test_the_systemd_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Parsed always, and by systemd itself where that is there; its flags are those of the command."""
    text = block("ini")
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, command, *given = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, command) == ("ttsnap", "serve")
    serve.parser().parse_args(given)
    assert float(unit["Service"]["TimeoutStopSec"]) > 30 + 10, "a drain and its grace"
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    there = tmp_path / "ttsnap.service"
    there.write_text(text.replace(program, "/bin/true"))  # systemd looks for the program
    told = subprocess.run([analyze, "verify", "--man=no", there], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_container_starts_what_there_is() -> None:
    lines = block("dockerfile").replace("\\\n", " ").splitlines()
    words = [line.partition(" ")[::2] for line in lines]
    said = dict(words)
    assert words[0][0] == "FROM"
    start = json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"])
    assert start[:2] == ["ttsnap", "serve"]
    serve.parser().parse_args(start[2:])
    (state,) = [start[i + 1] for i, word in enumerate(start) if word == "--state"]
    assert state == said["VOLUME"]
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(shlex.split(lines[2])[5:]) >= set(extras["service"])


@pytest.mark.parametrize(("kind", "package"), [("WanPipeline", "ftfy"), ("LTXPipeline", "PyAV")])
def test_what_an_extra_lacks_is_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, package: str
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    if package == "ftfy":
        monkeypatch.setattr("ttsnap.pipelines.modular.workflows.find_spec", lambda _: None)
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    state = str(tmp_path / "state")
    given = serve.parser().parse_args([str(tmp_path), "--rewards", "brightness", "--state", state])
    with pytest.raises(ValueError, match=rf"{package}.*pip install 'av>="):
        serve.run(given)


@pytest.mark.parametrize(("given", "expected"), [(None, "256"), ("64", "64")])
def test_the_service_bounds_what_onednn_keeps_unless_the_operator_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None, expected: str
) -> None:
    name, _ = KERNELS
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="algorithm file"):  # before any model is loaded
        serve.run(serve.parser().parse_args(["embedded", "--searches", f"mine={tmp_path / 'none.json'}"]))
    assert os.environ[name] == expected
