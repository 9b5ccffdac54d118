"""Initial noises of low discrepancy: each still standard normal, orthogonal or antithetic within its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ttsnap import BestOfN, search
from ttsnap.cli import main
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.store import Node
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.folder import load_recording
from ttsnap.results.outputs import read_payload
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.noises import NOISES, initial
from ttsnap.sampling.rng import seeded

from ..conftest import Brightness  # noqa: TID252


def draw(generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Latents of 12 numbers, with a scale."""
    return torch.stack([14.6 * torch.randn(3, 2, 2, generator=g) for g in generators])


def plain(seeds: Sequence[int]) -> torch.Tensor:
    return draw([seeded(s) for s in seeds])


@pytest.mark.parametrize("kind", NOISES)
def test_a_seeds_noise_depends_on_the_seed_alone(kind: str) -> None:
    seeds = [17, 3, 8, 16, 4, 23]
    together, generators = initial(kind, seeds, draw)
    for seed, noise, generator in zip(seeds, together, generators, strict=True):
        assert torch.equal(noise, initial(kind, [seed], draw)[0][0])
        # What a sampler draws next is what it always draws.
        expected = seeded(seed)
        draw([expected])
        assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=expected))
    assert torch.equal(together[2:4], plain([8, 16]))  # the first of their groups
    assert torch.equal(together, plain(seeds)) == (kind == "independent")


def test_orthogonal_noises_keep_their_lengths_within_groups() -> None:
    noise = initial("orthogonal", range(24), draw)[0].flatten(1)
    torch.testing.assert_close(noise.norm(dim=1), plain(range(24)).flatten(1).norm(dim=1))
    products = torch.nn.functional.normalize(noise) @ torch.nn.functional.normalize(noise).T
    for group in products.reshape(3, 8, 3, 8).diagonal(dim1=0, dim2=2).permute(2, 0, 1):
        assert torch.allclose(group, torch.eye(8), atol=1e-6)
    assert products[:8, 8:16].abs().max() > 0.1
    # Each keeps the part of its direction that is its own.
    assert bool(((noise * plain(range(24)).flatten(1)).sum(1) > 0).all())


def test_antithetic_noises_come_in_pairs() -> None:
    noise = initial("antithetic", range(6), draw)[0]
    assert torch.equal(noise[1::2], -noise[::2])
    assert torch.equal(noise[::2], plain([0, 2, 4]))
    assert torch.equal(initial("antithetic", [5], draw)[0][0], -plain([4])[0])


@pytest.mark.parametrize("kind", NOISES)
def test_each_noise_is_standard_normal(kind: str) -> None:
    """Means, variances and correlations within a noise, for the last seed of a group, which is changed most."""
    noise = initial(kind, range(7, 8 * 4000, 8), draw)[0].flatten(1) / 14.6
    n = len(noise)
    assert noise.mean(0).abs().max() < 5 / math.sqrt(n)
    covariance = noise.T.cov()
    off = covariance - torch.eye(12)
    assert off.diagonal().abs().max() < 5 * math.sqrt(2 / n)
    assert (off - off.diagonal().diag()).abs().max() < 5 / math.sqrt(n)
    # The fourth moment, and the length's variance: not that of unit vectors.
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    assert (noise**2).sum(1).var() == pytest.approx(24, rel=0.1)


def test_short_latents_have_small_groups(engine: Any) -> None:
    def three(generators: Sequence[torch.Generator]) -> torch.Tensor:
        return torch.stack([torch.randn(3, generator=g) for g in generators])

    noise = initial("orthogonal", range(6), three)[0]
    assert torch.isfinite(noise).all()
    for group in (noise[:3], noise[3:]):
        gram = group @ group.T
        torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)


def test_bfloat16_noises_stay_so() -> None:
    noise = initial("orthogonal", range(8), lambda g: draw(g).bfloat16())[0]
    assert noise.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", NOISES)
def test_searches_start_from_them_in_any_batch(counted: Any, kind: str) -> None:
    found = []
    for batch in (1, 3, 16):
        denoiser = counted(8)
        seen: dict[float, None] = {}
        predict = denoiser.predict

        def watched(x: Any, step: Any, cond: Any, predict: Any = predict, seen: Any = seen) -> Any:
            seen.update({float(row[0]): None for row in x[step == 0]})
            return predict(x, step, cond)

        denoiser.predict = watched
        engine = LiveEngine(denoiser, [Brightness()], EngineOptions(batch), noises=kind)
        result = search(["a"], BestOfN(7), engine, seed=2)[0]
        expected = initial(kind, range(2, 9), denoiser.init_latents)[0]
        assert list(seen) == expected[:, 0].tolist()
        found.append(result.best.seed)
        # Noise that is mixed afterwards starts from it.
        mixed = engine.noise.near(Node(0, 5, 0), 1.0, (5, 1, 8)).x
        assert torch.equal(mixed, expected[3])
    assert len(set(found)) == 1


def test_unknown_noises_are_refused() -> None:
    means = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="noises are independent, orthogonal, antithetic, got 'sobol'"):
        LiveEngine(MixtureDenoiser(means, torch.ones(1), torch.ones(1)), [Brightness()], noises="sobol")


def test_command_line_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    common = ["--steps", "3", "--device", "cpu"]
    main(["generate", "a red circle", "--algorithm", "best-of-n", "--budget", "12nfe", "--seed", "1", "--keep", "4",
          "--noises", "antithetic", "--out", str(out), *common])  # fmt: skip
    assert "in plain diffusers" not in capsys.readouterr().out
    png = next(out.glob("*-seed3.png"))
    assert read_payload(png)["noises"] == "antithetic"
    main(["replay", str(png), "--device", "cpu"])
    assert "largest difference from" in (text := capsys.readouterr().out)
    assert int(text.split(": ")[-1].split()[0]) <= 1
    record = tmp_path / "recording"
    main(["record", "a red circle", "--seeds", "2", "--noises", "orthogonal", "--out", str(record), *common])
    assert load_recording(record).info["noises"] == "orthogonal"
