"""Methods that make seeds differ more, as they were measured: benchmarks/variety_methods.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines import tiny
from ttsnap.core.prompt import Prompt
from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("variety_methods")


@torch.no_grad()
def predicted(method: Any, seeds: range = range(3)) -> torch.Tensor:
    """The first prediction for some seeds of a prompt, by a tiny guided model."""
    d = upgrade(tiny.shared("sd3")).denoiser(**tiny.FAMILIES["sd3"].call)
    method.set_up(d)
    d.encode([Prompt("a red circle")])
    x, cond = d.init_latents([seeded(seed) for seed in seeds]), torch.zeros(len(seeds), dtype=torch.long)
    out: torch.Tensor = method.predict(d, x, 0, cond, seeds).out
    return out


def test_methods_that_change_nothing_are_the_model_to_the_bit(methods: Any) -> None:
    plain = predicted(methods.Plain())
    for same in (methods.Cads(0.0), methods.Interval(0.0, 1.0), methods.Repelled(1.0, factor=0.0)):
        assert torch.equal(predicted(same), plain)
    for other in (methods.Cads(0.25), methods.Interval(0.0, 0.5), methods.Repelled(1.0)):
        assert not torch.equal(predicted(other), plain)
