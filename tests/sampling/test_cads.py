"""Encoded prompts under annealed noise, by formula."""

from __future__ import annotations

import math

import pytest
import torch

from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Cads, parse
from ttsnap.sampling.cads import STREAM, gamma, noised
from ttsnap.sampling.rng import generator, seeded


def test_gamma_falls_from_one_to_nothing() -> None:
    how = Cads(low=0.6, high=0.9)
    assert [gamma(level, how) for level in (0.0, 0.6, 0.9, 1.0)] == [1, 1, 0, 0]
    assert math.isclose(gamma(0.7, how), 2 / 3)


def test_a_prompt_is_noised_by_formula_and_keeps_mean_and_spread() -> None:
    y = torch.randn(5, 4, generator=seeded(0), dtype=torch.float64) * 3 + 2
    n = torch.randn(5, 4, generator=generator((STREAM, 7, 1)), dtype=torch.float64)
    hat = math.sqrt(0.3) * y + 0.5 * math.sqrt(0.7) * y.std(correction=0) * n
    expected = (hat - hat.mean()) / hat.std(correction=0) * y.std(correction=0) + y.mean()
    made = noised(y, 0.3, 0.5, (7, 1))
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close((made.mean(), made.std()), (y.mean(), y.std()))
    assert torch.equal(noised(y, 1.0, 0.5, (7, 1)), y)
    assert torch.equal(noised(y, 0.0, 0.0, (7, 1)), y)


def test_padding_stays_and_is_not_counted() -> None:
    y = torch.randn(5, 4, generator=seeded(0)).to(torch.bfloat16)
    y[3] = 0
    made, there = noised(y, 0.3, 0.5, (7,)), torch.tensor([0, 1, 2, 4])
    assert made.dtype == y.dtype
    assert (made[3] == 0).all()
    assert (made[there] != y[there]).any()
    torch.testing.assert_close(made[there].float().std(), y[there].float().std(), atol=0.01, rtol=0)
    assert (noised(torch.zeros(4), 0.3, 0.5, (7,)) == 0).all()
    assert noised(torch.ones(4), 0.3, 0.5, (7,)).isfinite().all()


def test_what_the_option_says() -> None:
    assert parse("cads") == Cads()
    assert parse("cads:0.25:.3:1.4") == Cads(0.25, 0.3, 1.4)
    options = SamplerOptions(variety="cads")
    assert (options.cads, options.repel, options.draft, options.stock) == (Cads(), None, None, False)
    assert SamplerOptions(variety="repel").cads is None
    refused = {"cads:": "the scale of", "cads:-1": "scale", "cads:0.1:1.5": "the low", "cadsy": "mean cads",
               "cads:1:0.9": "below its high", "cads:1:.6:.6": "0.6 and 0.6",
               "cads:1:0:1:1": "scale:low:high"}  # fmt: skip
    for wrong, words in refused.items():
        with pytest.raises(ValueError, match=words):
            SamplerOptions(variety=wrong)
    for more in ({"draft": "hot"}, {"finish": "draft"}):
        with pytest.raises(ValueError, match="leave draft and finish out"):
            SamplerOptions(variety="cads", **more)
