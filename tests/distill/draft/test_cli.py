"""`ttsnap distill-draft` as a new user meets it, on the embedded model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ttsnap.cli import main
from ttsnap.distill.config import DraftConfig
from ttsnap.distill.draft.train import DraftLesson
from ttsnap.files.plain_yaml import load_settings
from ttsnap.files.settings import to_json
from ttsnap.sampling.drafts import read_draft

from ...said import error_of  # noqa: TID252
from ..kills import calls  # noqa: TID252
from .small import bytes_in

pytestmark = pytest.mark.usefixtures("shallow_model")
SMALL = """
record: {prompts: [a red circle, a red cross, two red circles, a blue square, a green circle],
  steps: 4, seeds: 2, dtype: float32}
rank: 2
updates: 2
batch: 4
validation: 0.4
checkpoint_every: 0
prompts: 2
seeds: 3
estimates: [0, 3]
device: cpu
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)


def test_one_command_makes_a_draft_and_goes_on_after_ctrl_c(
    capsys,
):
    command = ["distill-draft", "--config", "small.yaml", "--out"]
    assert main([*command, "whole"]) == 0
    said = capsys.readouterr().out
    assert "| draft, 1 call" in said
    assert "| x0 estimate at step 3" in said
    assert "use it with: ttsnap generate PROMPT --draft whole/draft" in said
    settings = read_draft("whole/draft")
    assert (settings.trained_for.model, settings.trained_for.steps) == ("embedded", 4)
    assert settings.trained_for.guidance_scale == 4.0
    assert settings.checked[0].figures["seeds"] == 3

    with calls(DraftLesson, "losses", fails=2):
        assert main([*command, "parts"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert main([*command, "parts"]) == 0
    assert bytes_in(Path("parts/draft")) == bytes_in(Path("whole/draft"))

    # What it wrote down makes the same again; other settings are refused.
    config = load_settings(DraftConfig, Path("whole/config.yaml"))
    assert to_json(config) == yaml.safe_load(Path("whole/config.yaml").read_text())
    assert main([*command, "whole", "--rank", "3"]) == 2
    assert "other settings: rank is 2, not 3" in error_of(capsys)


def test_what_cannot_be_done_is_said_before_a_model_is_loaded(capsys):
    for arguments, said in (
        (["--first-time", "2"], "first-time must be less than or equal to 1, got 2"),
        (["--model", "a/b"], "there is no folder a/b"),
    ):
        assert main(["distill-draft", "--config", "small.yaml", "--out", "x", *arguments]) == 2
        assert said in error_of(capsys)
    assert main(["distill-draft", "--out", "x"]) == 2
    assert "no data" in error_of(capsys)


@pytest.mark.slow
def test_two_processes_make_the_draft_of_one(monkeypatch):
    """The same LoRA but for rounding, and the same bits when it is gone on with."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more threads round differently
    options = ["--updates", "4", "--precision", "no", "--warmup", "0"]
    # needs no GPU
    two = [*("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"), "ttsnap"]

    def run(out, launcher):
        command = [
            sys.executable,
            "-m",
            *launcher,
            "distill-draft",
            "--config",
            "small.yaml",
            *options,
            "--out",
            out,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("one", ["ttsnap"]).startswith("1 process on cpu\n")
    said = run("two", two)
    assert said.startswith("2 processes on cpu\n")
    assert said.count("| draft, 1 call") == said.count("the draft is in two/draft") == 1
    assert bytes_in(Path("two/recording")) == bytes_in(Path("one/recording"))

    def moved(out):
        """The weights that start at zero."""
        tensors = load_file(f"{out}/draft/pytorch_lora_weights.safetensors")
        return torch.cat(
            [tensors[name].float().flatten() for name in sorted(tensors) if "lora_B" in name]
        )

    one, both = moved("one"), moved("two")
    assert float((both - one).norm()) < 1e-3 * float(one.norm())

    shutil.copytree("two", "parts")

    def forget():
        for path in ("draft", "evaluation", "checkpoints/00000004"):
            shutil.rmtree(Path("parts", path))

    forget()
    run("parts", two)
    assert bytes_in(Path("parts/draft")) == bytes_in(Path("two/draft"))
    assert bytes_in(Path("parts/checkpoints")) == bytes_in(Path("two/checkpoints"))
    forget()
    run("parts", ["ttsnap"])  # by another number of processes
    assert float((both - moved("parts")).norm()) < 1e-3 * float(one.norm())
