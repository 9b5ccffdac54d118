"""What a draft takes, worked out without a GPU: benchmarks/draft_on_paper.py."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ttsnap.distill.draft.config import TrainingConfig
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.memory.flops import count

ROOT = Path(__file__).parents[3]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("draft_on_paper")


@pytest.mark.parametrize(("name", "lists"), [
    ("sdxl", [""]),
    ("sd3", ["transformer_blocks."]),
    ("flux", ["transformer_blocks.", "single_transformer_blocks."]),
])  # fmt: skip
def test_a_row_goes_forward_and_back_and_is_counted(
    paper: Any, name: str, lists: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = paper.worked_out(name, "tiny", 2)
    assert "no gradient reaches" not in capsys.readouterr().out

    case = importlib.import_module("families").build(name, "tiny", torch.device("cpu"), torch.bfloat16)
    denoiser = upgrade(case.pipe).denoiser(**case.call, num_inference_steps=paper.STEPS[name])
    linear = [
        part
        for at, part in denoiser.net.named_modules()
        if isinstance(part, nn.Linear) and any(at.startswith(within) for within in lists)
    ]
    assert found.layers == len(linear)
    assert found.numbers == sum(2 * (part.in_features + part.out_features) for part in linear)
    assert found.weights == 2 * sum(p.numel() for p in denoiser.net.parameters())
    # Searches count attention through its matrix of scores, and find the same.
    assert found.passes * found.base == pytest.approx(count(denoiser, lambda: denoiser)[0])
    assert found.latent == denoiser.init_latents([torch.Generator()]).numel()
    assert found.base < found.call < 1.5 * found.base
    assert found.cheaper["LoRA merged"] == found.base > 1.5 * found.cheaper["half the pixels a side"]
    if name == "sdxl":  # the other tiny networks have a block of each kind
        assert found.cheaper["half of the blocks"] < found.base
    # Back through frozen weights takes about another pass, and checkpointing at most one more.
    assert 1.8 * found.call < found.back < found.checkpointed <= found.back + found.call
    assert 0 < found.kept_checkpointed < found.kept


def test_hours_follow_from_the_figures(paper: Any) -> None:
    one = paper.Paper(
        "A model", 20, 2, 8_000_000_000, 5, 30_000_000, 1e12, 2e12, {"thin": 5e11}, 5e12, 6e12, 3 * 10**9, 10**9, 1000
    )
    assert one.trajectory == 40e12
    assert one.stored(states=5) == 12_000
    config = TrainingConfig(batch=48, second=0.25, steps=3600, checkpointing=True)
    assert one.step(config) == 48 * 6e12 + 12 * 2e12
    told = re.sub(" +", " ", paper.table([one], 100.0, 9000, config))
    assert "| 9,000 trajectories at 100 TFLOP/s | 1.0 h |" in told
    assert "| 3,600 x 48 rows at 100 TFLOP/s, checkpointing | 3.1 h |" in told
    assert "| its file, bfloat16 | 60 MB |" in told
    assert "| the same, thin | 0.50 passes |" in told
    assert "| its training state | 0.6 GB |" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_the_published_networks_take_a_row_forward_and_back(
    paper: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = paper.worked_out(name, "full", 32)
    assert "no gradient reaches" not in capsys.readouterr().out
    assert found.base == pytest.approx({"sdxl": 6.8e12, "sd3": 11.2e12, "flux": 74.4e12}[name], rel=0.01)
