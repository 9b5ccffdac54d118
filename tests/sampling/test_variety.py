"""Repel against its formula, token by token, and encoded prompts under annealed noise against theirs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Cads, Repel, parse
from ttsnap.sampling import repel
from ttsnap.sampling.cads import STREAM, gamma, noised
from ttsnap.sampling.repel import repelled
from ttsnap.sampling.rng import generator, seeded


def by_formula(h: Tensor, kept: Tensor, how: Repel) -> Tensor:
    """h <- (1 + a) h - a h_match, one token after another."""
    out = h.clone()
    for i in range(len(h)):
        others = torch.cat([h[j] for j in range(len(h)) if j != i]) if len(h) > 1 else h[:0, 0]
        for t in range(h.shape[1]):
            cosines = nn.functional.cosine_similarity(h[i, t], others, dim=-1)
            if len(others) and cosines.max() > how.threshold and kept[i, t]:
                out[i, t] = (1 + how.factor) * h[i, t] - how.factor * others[cosines.argmax()]
    return out


def tokens(n: int, length: int, width: int = 5) -> tuple[Tensor, Tensor]:
    """Tokens, most of which are like some other image's, and which of them are kept."""
    alike = torch.randn(length, width, generator=seeded(0), dtype=torch.float64)
    drawn = alike + 0.7 * torch.randn(n, length, width, generator=seeded(n), dtype=torch.float64)
    return drawn, torch.rand(n, length, generator=seeded(7)) > 0.3


@pytest.mark.parametrize(("n", "length"), [(2, 9), (3, 7), (8, 4)])
def test_tokens_move_by_the_formula(n: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    h, kept = tokens(n, length)
    for part in (1, 2**28):
        monkeypatch.setattr(repel, "MOST_BYTES", part)
        made = repelled(h, kept, Repel(n))
        torch.testing.assert_close(made, by_formula(h, kept, Repel(n)), rtol=1e-12, atol=1e-12)
        assert 0 < int((made != h).any(-1).sum()) < kept.sum()
    for how in (Repel(n, factor=0.0), Repel(n, threshold=1.0)):
        assert torch.equal(repelled(h, kept, how), h)
    assert torch.equal(repelled(h, torch.zeros_like(kept), Repel(n)), h)
    assert torch.equal(repelled(h[:1], kept[:1], Repel(1)), h[:1])


def test_gamma_falls_from_one_to_nothing() -> None:
    levels = (0.0, 0.6, 0.7, 0.9, 1.0)
    assert [gamma(level, Cads(low=0.6, high=0.9)) for level in levels] == pytest.approx([1, 1, 2 / 3, 0, 0], abs=1e-12)


def test_a_prompt_is_noised_by_formula() -> None:
    y = torch.randn(5, 4, generator=seeded(0), dtype=torch.float64) * 3 + 2
    n = torch.randn(5, 4, generator=generator((STREAM, 7, 1)), dtype=torch.float64)
    hat = math.sqrt(0.3) * y + 0.5 * math.sqrt(0.7) * y.std(correction=0) * n
    expected = (hat - hat.mean()) / hat.std(correction=0) * y.std(correction=0) + y.mean()
    torch.testing.assert_close(noised(y, 0.3, 0.5, (7, 1)), expected)
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
    assert parse("repel") == Repel(8, 0.9, 3.0, 0.7, 0.2)
    assert parse("repel:4:0.8:1.2:.65:0") == Repel(4, 0.8, 1.2, 0.65, 0.0)
    assert parse("cads") == Cads(0.1, 0.6, 0.9)
    assert parse("cads:0.25:.3:1.4") == Cads(0.25, 0.3, 1.4)
    options = SamplerOptions(variety="cads")
    assert (options.cads, options.repel, options.stock) == (Cads(), None, False)
    refused = {"repell": "did you mean repel", "repel:": "size", "repel:0": "1 to 99, got '0'", "repel:8.5": "whole",
               "repel:8:1.5": "the level.*'1.5'", "repel:8:nan": "the level", "repel:8:.9:-1": "the factor",
               "repel:8:0.9:3:0.7:0.2:1": "size:level:factor:threshold:drop", "cads:": "the scale of",
               "cads:-1": "scale", "cads:0.1:1.5": "the low", "cadsy": "mean cads", "cads:1:0.9": "below its high",
               "cads:1:.6:.6": "0.6 and 0.6", "cads:1:0:1:1": "scale:low:high"}  # fmt: skip
    for text, words in refused.items():
        with pytest.raises(ValueError, match=words):
            SamplerOptions(variety=text)
    with pytest.raises(ValueError, match="set finish to noise"):
        SamplerOptions(variety="repel", draft="hot", finish="0.6")
    for more in ({"draft": "hot"}, {"finish": "draft"}):
        with pytest.raises(ValueError, match="leave draft"):
            SamplerOptions(variety="cads", **more)
