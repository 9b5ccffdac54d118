"""`devices=` and `--devices`: the same images from several devices, and Ray only where it is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ttsnap.cli import main
from ttsnap.cluster.devices import alone
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.results import Result
from ttsnap.options.engine import DeviceOptions
from ttsnap.pipelines import defaults, load
from ttsnap.request.request import EngineSpec

from .local import LocalPool

HOW: dict[str, Any] = {
    "search": "best-of-n",
    "reward": "scenes",
    "budget": "8nfe",
    "num_inference_steps": 4,
    "batch_size": 1,
    "seed": 3,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = load().to("cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_a_call_on_two_devices_finds_what_it_finds_on_one(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def local(spec: EngineSpec, builder: Any, options: DeviceOptions) -> Iterator[ClusterEngine]:
        yield ClusterEngine(LocalPool(builder(spec), int(options.devices)))

    monkeypatch.setattr("ttsnap.cluster.devices.clustered", local)
    prompts = ["a red circle", "two green squares"]
    one, two = (pipe(prompts, devices=n, output_type="latent", **HOW) for n in (1, 2))
    pairs: list[tuple[Result, Result]] = list(zip(one.search, two.search, strict=True))
    for a, b in pairs:
        assert (a.best.seed, a.spent.cost) == (b.best.seed, b.spent.cost)
        torch.testing.assert_close(a.best.pixels, b.best.pixels, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=1e-4)


def test_edits_take_their_pictures_to_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def local(spec: EngineSpec, builder: Any, options: DeviceOptions) -> Iterator[ClusterEngine]:
        yield ClusterEngine(LocalPool(builder(spec), int(options.devices)))

    def keeps(images: torch.Tensor, prompts: list[str], *, source: torch.Tensor) -> torch.Tensor:
        return -(images.mean((2, 3)) - source.mean((2, 3))).abs().mean(1)

    keeps.needs = {"source"}  # type: ignore[attr-defined]
    monkeypatch.setattr("ttsnap.cluster.devices.clustered", local)
    editor = load(task="image-to-image").to("cpu")
    editor.set_progress_bar_config(disable=True)
    edits = {"image": [Image.new("RGB", (32, 32), name) for name in ("red", "blue")], "strength": 0.5}
    how = {**HOW, **defaults(), "num_inference_steps": 2, "negative_prompt": "", "reward": keeps, "budget": "3nfe"}
    one, two = (editor(prompt=["a red circle"] * 2, devices=n, **how, **edits).search for n in (1, 2))
    assert [r.best.seed for r in one] == [r.best.seed for r in two]
    assert [r.best.reward for r in one] == pytest.approx([r.best.reward for r in two], abs=1e-5)
    assert abs(one[0].best.reward - one[1].best.reward) > 0.01


def test_one_device_needs_no_ray_and_several_say_how_it_is_installed(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for devices in (1, "auto"):
        assert pipe("a red circle", devices=devices, **HOW).search[0].images
    with pytest.raises(ValueError, match="workers take Ray:"):
        pipe("a red circle", devices=2, **HOW)


def test_what_other_processes_cannot_make_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "preview_vae", object(), raising=False)
    with pytest.raises(ValueError, match="preview VAE"):
        pipe("a red circle", devices=2, **HOW)
    monkeypatch.delattr(pipe, "preview_vae")
    made = type(pipe)(**pipe.components)
    with pytest.raises(ValueError, match="save_pretrained"):
        made("a red circle", devices=2, **HOW)


def test_how_many_devices_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    several = [(2, "cpu"), ("all", "cpu"), ("all", "cuda"), ("auto", "cuda")]
    assert not any(alone(DeviceOptions(devices), kind) for devices, kind in several)
    assert all(alone(DeviceOptions(devices), kind) for devices, kind in [(1, "cuda"), ("auto", "cpu")])
    assert not alone(DeviceOptions(1, "auto"), "cpu")
    for wrong in (0, -1, "both", True, "2"):
        with pytest.raises(ValueError, match=f"devices must be .*got {wrong!r}"):
            DeviceOptions(wrong)


@pytest.mark.slow
def test_the_command_line_takes_devices(tmp_path: Path, ray_session: None, capsys: Any) -> None:
    words = ["generate", "a red circle", "--algorithm", "best-of-n", "--steps", "4", "--budget", "8nfe"]
    found = []
    for devices in ("1", "2"):
        assert main([*words, "--devices", devices, "--out", str(tmp_path / devices)]) == 0
        found.append([line for line in capsys.readouterr().out.splitlines() if "seed" in line and "scenes" in line])
    assert [line.split(str(tmp_path))[0] for line in found[0]] == [line.split(str(tmp_path))[0] for line in found[1]]
    assert found[0]
