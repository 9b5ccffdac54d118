"""The whole way, from a random model to a folder that plain diffusers loads, for every kind of
pipeline."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open

from ttsnap.distill.draft.run import distill_draft
from ttsnap.files.writing import locked
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.sampling.drafts import Checked, TrainedFor, note_check, read_draft

from ...pipelines.tiny import FAMILIES  # noqa: TID252
from .. import kills  # noqa: TID252
from ..kills import ended, killed  # noqa: TID252
from .small import STEPS, bytes_in, call_of, config_of, pipe_of, recorded, stock_of


def run(config, out):
    """A draft of a pipeline, also in another process."""
    return distill_draft(config, out, lambda device, dtype: pipe_of(config.model))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("recording") / "r")


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_a_draft_is_made_of_every_kind_of_pipeline(name, tmp_path):
    config = config_of(recorded(tmp_path / "r", name), name, lr=1.0, warmup=0, ema=0.0)
    looks = run(config, tmp_path / "out")
    assert {str(look.seen) for look in looks} == {
        "draft:1@0",
        "draft:2@0",
        "estimate@0",
        "estimate@1",
    }
    folder = tmp_path / "out" / "draft"
    assert {path.name for path in folder.iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "draft.json",
        "README.md",
    }

    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {key.rpartition(".")[2] for key in about} == {"r", "lora_alpha", "target_modules"}

    stock = stock_of(name)
    call = {**FAMILIES[name].call, "num_inference_steps": 2, "output_type": "latent"}
    before = stock("a dog", generator=torch.Generator().manual_seed(0), **call).images
    stock.load_lora_weights(folder)
    try:
        after = stock("a dog", generator=torch.Generator().manual_seed(0), **call).images
        with pytest.raises(ValueError, match="a LoRA already"):
            distill_draft(config, tmp_path / "other", lambda *_: upgrade(stock))
    finally:
        stock.unload_lora_weights()  # it is shared by all tests
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after, atol=1e-3)

    settings = read_draft(folder)
    assert settings.first_time == 0.87
    scale = {"sdxl": 5.0, "sd3": 5.0, "flux": 3.5}[name]
    (checked,) = settings.checked
    assert (checked.model, checked.steps, checked.guidance_scale) == (name, STEPS, scale)
    assert checked.figures["seeds"] == 3
    assert settings.trained_for == TrainedFor(name, STEPS, scale)
    base = pipe_of(name).denoiser(**call_of(name))
    use_drafter(base, str(folder))
    base.encode(["a dog"])
    x, zero = (
        base.init_latents([torch.Generator().manual_seed(0)]),
        torch.zeros(1, dtype=torch.long),
    )
    assert torch.isfinite(base.drafts.guess(x, zero, zero, 2)).all()


class Undisturbed(NamedTuple):
    """A run, and what it left when it was made."""

    out: Path
    left: dict[str, bytes]


@pytest.fixture(scope="module")
def undisturbed(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    kills.undisturbed(partial(run, config_of(recording), out))
    return Undisturbed(out, left_by(out))


def test_a_finished_run_is_not_made_again(recording, undisturbed, monkeypatch):
    monkeypatch.setattr("ttsnap.distill.draft.run.Training", None)
    monkeypatch.chdir(undisturbed.out.parent)
    note_check("out/draft", Checked("sd3", 9, 5.0))
    looks = run(config_of(recording), Path("out"))
    # what was noted since stays
    assert [check.steps for check in read_draft("out/draft").checked] == [9, STEPS]
    assert len(looks) == 4
    card = Path("out/draft/README.md").read_text()
    assert "| draft, 2 calls" in card
    assert "- 6 trajectories\n- 4 steps of 4 rows, rank 2" in card


def left_by(out):
    """What a run leaves for its user, the seconds in it aside, and its last checkpoint."""
    last = max((out / "checkpoints").iterdir())
    kept = ("draft/", f"checkpoints/{last.name}", "config")
    return {name: data for name, data in bytes_in(out).items() if name.startswith(kept)}


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_ends_as_undisturbed(recording, undisturbed, tmp_path, seed):
    assert ended(partial(run, config_of(recording), tmp_path / "out"), tmp_path, seed) >= 2
    assert left_by(tmp_path / "out") == undisturbed.left


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_it_ends_as_undisturbed(recording, undisturbed, tmp_path):
    for moment in itertools.count(1, 7):
        out = tmp_path / str(moment)
        if not killed(partial(run, config_of(recording), out), out, moment):
            break
        run(config_of(recording), out)
        assert left_by(out) == undisturbed.left
    assert moment > 40


def test_it_starts_from_an_earlier_draft(recording, tmp_path):
    run(config_of(recording, lr=1.0, warmup=0), tmp_path / "first")
    earlier = str(tmp_path / "first" / "draft")
    run(config_of(recording, start=earlier, lr=1e-9), tmp_path / "second")
    files = [
        bytes_in(tmp_path / run / "draft")["pytorch_lora_weights.safetensors"]
        for run in ("first", "second")
    ]
    assert files[0] == files[1]
    with pytest.raises(
        ValueError, match=r"start .* does not fit: .* is \(2, \d+\) there, here \(3, \d+\)"
    ):
        run(config_of(recording, start=earlier, rank=3), tmp_path / "third")
    with pytest.raises(ValueError, match=r"start: cannot read nowhere"):
        run(config_of(recording, start="nowhere"), tmp_path / "third")


def test_recordings_that_no_draft_can_be_learnt_from_are_refused(recording, tmp_path):
    for wrong, said in (
        ({"kernel": "sde"}, "record without kernel"),
        ({"kernel": "pipeline", "variety": "repel"}, "record without variety"),
        ({"dtype": None}, "dtype must be"),
        ({"model": "another"}, "model is another in the first recording, not sd3"),
    ):
        folder = recorded(tmp_path / said[:20], **wrong)
        with pytest.raises(ValueError, match=said):
            run(config_of(folder), tmp_path / "out")
    twice = config_of(recording, recordings=[str(recording)] * 2)
    with pytest.raises(ValueError, match="20 trajectories begin with 10 different noises"):
        run(twice, tmp_path / "out")
    other = recorded(tmp_path / "other", call={**call_of(), "guidance_scale": 2.0})
    both = config_of(recording, recordings=[str(recording), str(other)])
    with pytest.raises(ValueError, match="one call"):
        run(both, tmp_path / "out")


def test_other_settings_are_refused_before_anything_is_changed(recording, undisturbed, tmp_path):
    before = bytes_in(undisturbed.out)
    with pytest.raises(ValueError, match=r"lr is 0\.01, not 0\.5"):
        run(config_of(recording, lr=0.5), undisturbed.out)
    assert bytes_in(undisturbed.out) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        run(config_of(recording), tmp_path)
    with locked(tmp_path / "held"), pytest.raises(ValueError, match=r"writing to .*held"):
        run(config_of(recording), tmp_path / "held")
    assert not list((tmp_path / "held").iterdir())
