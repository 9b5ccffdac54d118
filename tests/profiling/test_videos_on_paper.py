"""What videos take in memory, worked out without a GPU: benchmarks/videos_on_paper.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
KIB = 1024


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("videos_on_paper")


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_peak_is_what_lives_at_a_time(paper: Any, device: str) -> None:
    """x is given (4 KiB); 8 channels take 8 KiB, their ReLU 8 more, and 4 channels 4 once the first are gone."""
    with torch.device(device):
        x, inplace = torch.zeros(1, 4, 16, 16), nn.ReLU(inplace=True)
        wide, narrow = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
        assert paper.peak(lambda: narrow(nn.functional.relu(wide(x)))) == 16 * KIB
        assert paper.peak(lambda: narrow(inplace(wide(x)))) == 12 * KIB
        assert paper.peak(lambda: x.view(4, 256).T[1:]) == 0
        assert paper.peak(lambda: [x + 1 for _ in range(3)]) == 12 * KIB
        assert paper.peak(lambda: sum(float(0 * len(x + 1)) for _ in range(3))) == 4 * KIB


def test_a_table_says_what_fits(paper: Any) -> None:
    def small() -> Any:
        return nn.Conv3d(16, 16, 1, bias=False)

    class Halves(nn.Module):
        """A VAE that takes a quarter of the memory in tiles."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.tiles = nn.Parameter(torch.zeros(4)), 1

        def enable_tiling(self) -> None:
            self.tiles = 4

        def decode(self, z: Any) -> Any:
            return [float(len(part + 1)) for part in z.chunk(self.tiles, dim=1)]

    size = paper.Size(frames=9, height=16, width=32)
    latent = paper._wan_latent(size)
    assert latent == (16, 3, 2, 4)
    assert paper._ltx_latent(paper.Size(9, 64, 96)) == (128, 2, 2, 3)
    model = paper.Model(
        "toy", small, Halves, paper._wan_latent, lambda shape: {"input": torch.zeros(1, *shape).bfloat16()}, None
    )
    found = paper.worked_out(model, size)
    numbers = 16 * 3 * 2 * 4
    assert (found.latent, found.row, found.decode, found.tiled) == (4 * numbers, 2 * numbers, 2 * numbers, numbers // 2)
    assert found.weights == 2 * (256 + 4)
    assert found.video == 4 * 3 * 9 * 16 * 32
    big = paper.Paper("big", 10 * paper.GIB, 0, paper.GIB, 3 * paper.GIB, paper.GIB, None, 0)
    assert (big.fit(big.row, 24), big.fit(big.decode, 24), big.fit(big.row, 8)) == (10, 3, 0)  # 0.85 x 24 - 10 GiB
    assert " 10 / 3 / 10 |" in paper.table([big], gpus=(24,))
