"""scripts/gpu.py: the whole run in small, its time limits, and what it makes of parts that fail or are cut off."""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "scripts" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_a_rehearsal_on_the_cpu_runs_every_part(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, since importing torch for every part would take longer than the parts."""
    asked: list[tuple[list[str], float]] = []

    def launch(command: list[str], log: Path, limit: float) -> int:
        asked.append((command, limit))
        if command[0] == "-m":  # tests/gpu is part of this very run
            log.write_text("tests/gpu/test_x.py::test_a[cpu] PASSED [ 50%]\ntests/gpu/test_x.py::test_b SKIPPED (no)\n")
            return 0
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(command[0], run_name="__main__")
        log.write_text("")
        return 0

    monkeypatch.setattr(gpu, "launch", launch)
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = found["parts"]
    assert list(parts) == ["tests", "sdxl", "flux", "batching", "quality"]
    assert {part["ended"] for part in parts.values()} == {"done"}
    assert parts["tests"]["figures"] == {"passed": 1, "failed": 0, "skipped": 1, "names_of_failed": []}
    assert asked[0][0][:5] == ["-m", "pytest", str(ROOT / "tests" / "gpu"), "-m", "not gpu"]
    for family in ("sdxl", "flux"):
        rows = parts[family]["figures"]["loop"]
        assert [row["candidates"] for row in rows] == [1, 2]
        assert all(row["difference"] == 0 and row["stock_seconds"] > 0 for row in rows)
    assert [row["how"] for row in parts["batching"]["figures"]["batching"]] == ["all prompts at once", "one at a time"]
    runs = parts["quality"]["figures"]["runs"]
    assert [row["method"] for row in runs] == ["seed-pruning", "best-of-3", "best-of-6"]
    assert runs[1]["reward"] <= runs[2]["reward"]  # the same seeds and three more
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# cpu\n")
    assert torch.__version__ in page
    assert "A rehearsal with tiny networks" in page
    assert all(f"| {name} | done |" in page for name in parts)
    assert "| flux | 2 |" in page


def test_nine_minutes_are_enough(gpu: Any) -> None:
    assert set(gpu.LIMITS) == set(gpu.PARTS)
    assert sum(gpu.LIMITS.values()) < 9 * 60
    full = gpu.full_size("flux", gpu.Options("cuda", False, Path("out")))
    assert " ".join(full).endswith("--families flux --size full --candidates 1 4 16 --steps 4 --repeats 2")
    assert "gpu" in gpu.tests(gpu.Options("cuda", False, Path("out")))


def test_a_part_is_stopped_at_its_limit_and_keeps_its_figures(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "sdxl.json"
    endless = f"import time; open({str(figures)!r}, 'w').write('{{\"loop\": []}}'); print('so far'); time.sleep(600)"
    broken = "raise SystemExit('CUDA error: out of memory')"
    monkeypatch.setattr(gpu, "PARTS", {"sdxl": lambda o: ["-uc", endless], "flux": lambda o: ["-c", broken]})
    monkeypatch.setattr(gpu, "LIMITS", {"sdxl": 2, "flux": 60})
    begin = time.perf_counter()
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", "sdxl", "flux"]) == 1
    assert time.perf_counter() - begin < 60
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert (parts["sdxl"]["ended"], parts["sdxl"]["figures"]) == ("cut off after 2 s", {"loop": []})
    assert "so far" in parts["sdxl"]["said"]
    assert (parts["flux"]["ended"], parts["flux"]["figures"]) == ("failed with status 1", None)
    assert "CUDA error" in parts["flux"]["said"]


def test_what_is_missing_is_said(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("pytest", "ttsnap.pipelines") else found(name)
    )
    part = gpu.run_part("tests", gpu.Options("cpu", True, tmp_path))
    assert part == {"seconds": 0.0, "ended": "skipped: pytest is not installed", "figures": None}
    # Where ttsnap is not installed, the checkout stands in for it.
    path = gpu.package()["PYTHONPATH"].split(":")[0]
    package = PathFinder.find_spec("ttsnap", [path])
    assert package is not None
    inside = list(package.submodule_search_locations or ())
    for name in ("pipelines", "reward_models", "distill", "scenes", "loop"):
        assert PathFinder.find_spec(f"ttsnap.{name}", inside) is not None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for given, why in (([], "no accelerator here; --device cpu --tiny"), (["--device", "cpu"], "add --tiny")):
        with pytest.raises(SystemExit, match="2"):
            gpu.main([*given, "--out", str(tmp_path)])
        assert why in capsys.readouterr().err


@pytest.mark.usefixtures("benchmarks")
def test_full_size_networks_are_the_published_ones() -> None:
    """Made on the meta device, which holds no numbers."""
    families: Any = importlib.import_module("families")
    for name, part, published in (
        ("sdxl", "unet", 2_567_463_684),
        ("sd3", "transformer", 2_243_171_520),  # of SD3.5 medium; with its table of positions a file of 4.94 GB
        ("flux", "transformer", 11_901_408_320),
    ):
        case = families.build(name, "full", torch.device("meta"), torch.bfloat16)
        network = getattr(case.pipe, part)
        assert sum(p.numel() for p in network.parameters()) == published
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        assert case.pipe.vae.use_slicing
        assert case.call["height"] == case.call["width"] == 1024
