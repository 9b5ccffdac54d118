"""Repel against its formula, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Repel, parse
from ttsnap.sampling import repel
from ttsnap.sampling.repel import repelled
from ttsnap.sampling.rng import seeded


def by_formula(h, kept, how):
    """h <- (1 + a) h - a h_match, one token after another."""
    out = h.clone()
    for i in range(len(h)):
        others = torch.cat([h[j] for j in range(len(h)) if j != i]) if len(h) > 1 else h[:0, 0]
        for t in range(h.shape[1]):
            cosines = nn.functional.cosine_similarity(h[i, t], others, dim=-1)
            if len(others) and cosines.max() > how.threshold and kept[i, t]:
                out[i, t] = (1 + how.factor) * h[i, t] - how.factor * others[cosines.argmax()]
    return out


def tokens(n, length, width=5):
    """Tokens, most of which are like some other image's, and which of them are kept."""
    alike = torch.randn(length, width, generator=seeded(0), dtype=torch.float64)
    drawn = alike + 0.7 * torch.randn(n, length, width, generator=seeded(n), dtype=torch.float64)
    return drawn, torch.rand(n, length, generator=seeded(7)) > 0.3


@pytest.mark.parametrize(("n", "length"), [(2, 9), (3, 7), (8, 4)])
def test_tokens_move_by_the_formula(n, length, monkeypatch):
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


def test_what_the_option_says():
    assert parse("repel") == Repel(8, 0.9, 3.0, 0.7, 0.2)
    assert parse("repel:4:0.8:1.2:.65:0") == Repel(4, 0.8, 1.2, 0.65, 0.0)
    refused = {
        "repell": "did you mean repel",
        "repel:": "size",
        "repel:0": "1 to 99, got '0'",
        "repel:8.5": "whole",
        "repel:8:1.5": "the level.*'1.5'",
        "repel:8:nan": "the level",
        "repel:8:.9:-1": "the factor",
        "repel:8:0.9:3:0.7:0.2:1": "size:level:factor:threshold:drop",
    }
    for text, words in refused.items():
        with pytest.raises(ValueError, match=words):
            SamplerOptions(variety=text)
    with pytest.raises(ValueError, match="set finish to noise"):
        SamplerOptions(variety="repel", draft="hot", finish="0.6")
