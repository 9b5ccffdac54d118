"""A look that is added: the change that the how-to shows, in a copy of the package, against answers found by hand."""

from __future__ import annotations

from pathlib import Path

from ..copied import change_package, copy_package, run_trial  # noqa: TID252

TRIAL = """
import dataclasses
import numpy as np
import pytest
import torch
from ttsnap.core import advance, fresh
from ttsnap.core.looks import Noised
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling import rng
from ttsnap.sampling.mixture import MixtureDenoiser

STEPS = 6

class Counted(MixtureDenoiser):
    rows = 0
    def predict(self, x, step, cond):
        self.rows += len(x)
        return super().predict(x, step, cond)

@dataclasses.dataclass(frozen=True)
class Best:
    n: int | None = 5
    stop: int = 2
    lockstep = False
    needs = Noised().needs

    def init(self, task):
        return 0

    def step(self, state, particles, draws):
        if state == 0:
            return fresh(self.n, self.stop, look=Noised()), 1
        return (advance(particles, particles.ranked()[:1], STEPS), 2) if state == 1 else (None, 2)

class Bright:
    name = "bright"
    levels = []
    def __call__(self, images, prompts, level):
        self.levels += level.tolist()
        return images.double().mean((1, 2, 3))

def made():
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return Counted(means, torch.full((4,), 0.3), torch.ones(4), steps=STEPS)

def by_hand(denoiser, seed, stop):
    one, x = torch.zeros(1, dtype=int), denoiser.init_latents([rng.seeded(seed)])
    for k in range(stop):
        x, _ = denoiser.kernel.step(x, denoiser.predict(x, one + k, one), one + k, [(seed, 0)], [None])
    return float(denoiser.decode(x).mean())

for stop in (2, STEPS - 1):
    denoiser, reward = made(), Bright()
    reward.levels = []
    engine = LiveEngine(denoiser, [reward], EngineOptions(batch_size=4))
    result = search(["a"], Best(stop=stop), engine)[0]
    assert denoiser.rows == result.spent.nfe == 5 * (stop + 1) + STEPS - stop - 1, (stop, denoiser.rows, result.spent)
    scores = result.particles.scores[:, stop, 0]
    np.testing.assert_allclose(scores, [by_hand(made(), seed, stop) for seed in range(5)], rtol=1e-6)
    assert reward.levels[0] == pytest.approx(denoiser.grid.levels[stop])
    assert search(["a"], Best(stop=stop), DryEngine(denoiser.grid, ("bright",)))[0].spent.nfe == result.spent.nfe
    # The winner is the image of its seed: the look has left the particle where it was.
    alone = search(["a"], Best(1, stop), LiveEngine(made(), [reward]), seed=result.best.seed)[0]
    assert alone.best.reward == pytest.approx(result.best.reward)

for ticks in range(1, 8):
    denoiser, asked = made(), iter([False] * ticks + [True] * 99)
    engine = LiveEngine(denoiser, [Bright()], EngineOptions(batch_size=3))
    stopped = search(["a"], Best(), engine, should_stop=lambda: next(asked))[0]
    assert denoiser.rows == stopped.spent.nfe, ticks

recording = Recording(("a",), np.zeros((1, 8, STEPS + 1, 1)), made().grid, ("bright",))
with pytest.raises(ValueError, match="noised@2 asked for"):
    search(["a"], Best(), ReplayEngine(recording))
"""


def test_a_new_look_is_the_change_of_the_how_to(tmp_path: Path) -> None:
    copy_package(tmp_path)
    touched = change_package(tmp_path, "look.diff")
    assert touched == ["ttsnap/core/looks.py", "ttsnap/engine/looks.py"]
    run_trial(TRIAL, tmp_path)
