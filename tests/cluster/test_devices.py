"""`devices=` and `--devices`: the same images from several devices, and Ray only where it is
needed."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from tests.pipelines.calls.tiny import call_of, stock
from ttsnap.cluster.devices import alone, connect
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.options.engine import DeviceOptions
from ttsnap.pipelines import defaults, load

from .local import LocalPool

HOW = {
    "search": "best-of-n",
    "reward": "scenes",
    "budget": "8nfe",
    "num_inference_steps": 4,
    "batch_size": 1,
    "seed": 3,
}


def loaded(**how):
    pipe = load(**how).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return loaded()


@pytest.fixture
def local(monkeypatch):
    """Devices are actors without processes."""

    @contextmanager
    def clustered(spec, builder, options):
        yield ClusterEngine(LocalPool(builder(spec), int(options.devices)))

    monkeypatch.setattr("ttsnap.cluster.devices.clustered", clustered)


@pytest.mark.usefixtures("local")
def test_a_call_on_two_devices_finds_what_it_finds_on_one(pipe):
    prompts = ["a red circle", "two green squares"]
    one, two = (pipe(prompts, devices=n, output_type="latent", **HOW) for n in (1, 2))
    for a, b in zip(one.search, two.search, strict=True):
        assert (a.best.seed, a.spent.cost) == (b.best.seed, b.spent.cost)
        torch.testing.assert_close(a.best.pixels, b.best.pixels, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("local")
def test_any_class_takes_its_drafter_and_arguments_along(tmp_path):
    stock("PixArtAlphaPipeline").save_pretrained(tmp_path)
    pipe = loaded(model=tmp_path)
    how = {
        **HOW,
        **call_of("PixArtAlphaPipeline"),
        "search": "ttsnap",
        "reward": "brightness",
        "budget": "12nfe",
        "guidance_scale": 2.0,
    }
    how |= {"draft": "hot", "finish": 0.5, "kernel": "ode", "output_type": "pt"}
    one, two = (pipe("a red circle", devices=n, **how) for n in (1, 2))
    assert one.search[0].spent.cost == two.search[0].spent.cost
    torch.testing.assert_close(one.images, two.images, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("local")
def test_what_actors_find_while_a_search_runs_is_told_and_counted(tmp_path):
    stock("AnimateDiffPipeline").save_pretrained(tmp_path)  # whose network mixes the rows of a call
    pipe = loaded(model=tmp_path)
    how = {**HOW, **call_of("AnimateDiffPipeline"), "reward": "brightness", "budget": "3images"}
    how |= {"num_inference_steps": 2, "batch_size": 4}
    one, two = (pipe("a red circle", devices=n, output_type="pt", **how).search[0] for n in (1, 2))
    assert any("one by one" in said for said in one.warnings)
    assert two.warnings == one.warnings
    assert one.spent.calibration.nfe > 0
    assert two.spent.calibration.nfe > 0


@pytest.mark.usefixtures("local")
def test_edits_take_their_pictures_to_the_devices():
    def keeps(images, prompts, *, source):
        return -(images.mean((2, 3)) - source.mean((2, 3))).abs().mean(1)

    keeps.needs = {"source"}  # type: ignore[attr-defined]
    edits = {
        "image": [Image.new("RGB", (32, 32), name) for name in ("red", "blue")],
        "strength": 0.5,
    }
    how = {
        **HOW,
        **defaults(),
        "num_inference_steps": 2,
        "negative_prompt": "",
        "reward": keeps,
        "budget": "3nfe",
    }
    editor = loaded(task="image-to-image")
    one, two = (
        editor(prompt=["a red circle"] * 2, devices=n, **how, **edits).search for n in (1, 2)
    )
    assert [r.best.seed for r in one] == [r.best.seed for r in two]
    assert [r.best.reward for r in one] == pytest.approx([r.best.reward for r in two], abs=1e-5)
    assert abs(one[0].best.reward - one[1].best.reward) > 0.01


def test_one_device_needs_no_ray_and_several_say_so(pipe, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for devices in (1, "auto"):
        assert pipe("a red circle", devices=devices, **HOW).search[0].images
    with pytest.raises(ValueError, match="take Ray:"):
        pipe("a red circle", devices=2, **HOW)


def test_what_other_processes_cannot_make_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "preview_vae", object(), raising=False)
    with pytest.raises(ValueError, match="preview VAE"):
        pipe("a red circle", devices=2, **HOW)
    monkeypatch.delattr(pipe, "preview_vae")
    made = type(pipe)(**pipe.components)
    with pytest.raises(ValueError, match="save_pretrained"):
        made("a red circle", devices=2, **HOW)


def test_how_many_devices_are_meant(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.xpu.device_count", lambda: 2)
    monkeypatch.setattr("torch.mps.device_count", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    several = [(2, "cpu"), ("all", "cpu"), ("all", "cuda"), ("auto", "cuda"), ("auto", "xpu")]
    assert not any(alone(DeviceOptions(devices), kind) for devices, kind in several)
    assert all(
        alone(DeviceOptions(devices), kind)
        for devices, kind in [(1, "cuda"), ("auto", "cpu"), ("all", "mps")]
    )
    assert not alone(DeviceOptions(1, "auto"), "cpu")
    for wrong in (0, -1, "both", True, "2"):
        with pytest.raises(ValueError, match=f"devices must be .*got {wrong!r}"):
            DeviceOptions(wrong)


def test_a_search_on_this_machine_outlives_the_server_of_ray(
    monkeypatch,
):
    """Ray reads this as it starts, and ends the process so long after its server died."""
    ray, seen = pytest.importorskip("ray"), dict[str, str]()
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: seen.update(os.environ))
    for address, seconds in (("10.0.0.1:6379", None), (None, "3600")):
        connect(address)
        assert seen.get("RAY_gcs_rpc_server_reconnect_timeout_s") == seconds
