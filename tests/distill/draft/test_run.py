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

from ttsnap.distill.draft.prompts import Listed
from ttsnap.distill.draft.run import Measured, distill_draft
from ttsnap.files.writing import locked
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.sampling.drafts import Checked, TrainedFor, note_check, read_draft

from ...pipelines.tiny import FAMILIES  # noqa: TID252
from .. import kills  # noqa: TID252
from ..kills import ended, killed  # noqa: TID252
from .small import PROMPTS, STEPS, Brightness, bytes_in, config_of, denoiser_of, pipe_of, stock_of

HELD_OUT = ("a green tree", "a blue house")


def run(config, out, name, prompts=PROMPTS):
    """A draft of a pipeline, also in another process."""
    out.mkdir(exist_ok=True)
    measured = Measured(HELD_OUT, Brightness())
    return distill_draft(pipe_of(name), config, prompts, out, measured=measured)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_a_draft_is_made_of_every_kind_of_pipeline(name, tmp_path):
    looks = run(
        config_of(name, training={"lr": 1.0, "warmup": 0, "ema": 0.0}), tmp_path / "out", name
    )
    assert {str(look.seen) for look in looks} == {
        "draft:1@0",
        "draft:2@0",
        "draft:1@2",
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
            distill_draft(upgrade(stock), config_of(name), PROMPTS, tmp_path / "other")
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
    base = denoiser_of(config_of(name))
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
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    kills.undisturbed(partial(run, config_of(), out, "sd3"))
    return Undisturbed(out, left_by(out))


def test_a_finished_run_is_not_made_again(undisturbed, monkeypatch):
    def made(*args):
        raise AssertionError("it was there already")

    for done in ("trajectories._shard", "run.Training"):
        monkeypatch.setattr(f"ttsnap.distill.draft.{done}", made)
    monkeypatch.chdir(undisturbed.out.parent)
    note_check("out/draft", Checked("sd3", 9, 5.0))
    looks = run(config_of(), Path("out"), "sd3")
    # what was noted since stays
    assert [check.steps for check in read_draft("out/draft").checked] == [9, STEPS]
    assert len(looks) == 5
    card = Path("out/draft/README.md").read_text()
    assert "| draft, 2 calls" in card
    assert "4 steps of 4 rows, rank 2" in card


def left_by(out):
    """What a run leaves for its user, the seconds in it aside, and its last checkpoint."""
    last = max((out / "checkpoints").iterdir())
    kept = ("draft/", "trajectories/", f"checkpoints/{last.name}", "config")
    return {name: data for name, data in bytes_in(out).items() if name.startswith(kept)}


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_ends_as_undisturbed(undisturbed, tmp_path, seed):
    assert ended(partial(run, config_of(), tmp_path / "out", "sd3"), tmp_path, seed) >= 2
    assert left_by(tmp_path / "out") == undisturbed.left


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_it_ends_as_undisturbed(undisturbed, tmp_path):
    for moment in itertools.count(1, 7):
        out = tmp_path / str(moment)
        if not killed(partial(run, config_of(), out, "sd3"), out, moment):
            break
        run(config_of(), out, "sd3")
        assert left_by(out) == undisturbed.left
    assert moment > 40


def test_it_starts_from_an_earlier_draft(tmp_path):
    run(config_of(training={"lr": 1.0, "warmup": 0}), tmp_path / "first", "sd3")
    earlier = str(tmp_path / "first" / "draft")
    run(config_of(training={"start": earlier, "lr": 1e-9}), tmp_path / "second", "sd3")
    files = [
        bytes_in(tmp_path / run / "draft")["pytorch_lora_weights.safetensors"]
        for run in ("first", "second")
    ]
    assert files[0] == files[1]
    with pytest.raises(
        ValueError,
        match=r"training\.start .* does not fit: .* is \(2, \d+\) there, here \(3, \d+\)",
    ):
        run(config_of(training={"start": earlier, "rank": 3}), tmp_path / "third", "sd3")


def test_what_cannot_be_trained_is_said_before_trajectories_are_made(tmp_path):
    for sections, said in (
        ({"training": {"start": "nowhere"}}, r"training\.start nowhere is no draft's folder"),
        # in files of two
        ({"training": {"validation": 6}, "trajectories": {"count": 5}}, "6, but there are only 6"),
    ):
        with pytest.raises(ValueError, match=said):
            run(config_of(**sections), tmp_path, "sd3")
    assert not (tmp_path / "trajectories").exists()


def test_other_settings_are_refused_before_anything_is_changed(undisturbed, tmp_path):
    before = bytes_in(undisturbed.out)
    for sections, said in (
        ({"training": {"lr": 0.5}}, r"training\.lr is 0\.01, not 0\.5"),
        ({"trajectories": {"states": 2}}, r"trajectories\.states is 3, not 2"),
        ({"trajectories": {"count": 8}}, r"trajectories\.count is 6, not 8"),
    ):
        with pytest.raises(ValueError, match=said):
            run(config_of(**sections), undisturbed.out, "sd3")
    # Other prompts, of which some may be those that the draft is measured on.
    with pytest.raises(ValueError, match=r"other settings \(model, dtype, call, prompts"):
        run(config_of(), undisturbed.out, "sd3", Listed(["another prompt"]))
    assert bytes_in(undisturbed.out) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        run(config_of(), tmp_path, "sd3")
    with locked(tmp_path / "held"), pytest.raises(ValueError, match=r"writing to .*held"):
        run(config_of(), tmp_path / "held", "sd3")
    assert not list((tmp_path / "held").iterdir())
