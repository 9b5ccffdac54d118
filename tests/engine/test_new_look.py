"""A look that is added: the change that the how-to shows, in a copy of the package, against answers found by hand."""

from __future__ import annotations

from pathlib import Path

from ..copied import change_package, copy_package, run_trial  # noqa: TID252

TRIAL = """
import numpy as np
import pytest
import torch
from tests.counted import Brightness, Counted
from tests.scripted import Played
from ttsnap.core import advance, fresh
from ttsnap.core.looks import Noised
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling import rng

STEPS = 6

def best(stop, n=5):
    moves = lambda p: fresh(n, stop, look=Noised()), lambda p: advance(p, p.ranked()[:1], STEPS)
    return Played(moves, needs=Noised().needs, n=n)

def made():
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return Counted(means, torch.full((4,), 0.3), torch.ones(4), steps=STEPS)

def by_hand(denoiser, seed, stop):
    one, x = torch.zeros(1, dtype=int), denoiser.init_latents([rng.seeded(seed)])
    for k in range(stop):
        x, _ = denoiser.kernel.step(x, denoiser.predict(x, one + k, one), one + k, [(seed, 0)], [None])
    return float(denoiser.decode(x).mean())

for stop in (2, STEPS - 1):
    denoiser = made()
    result = search(["a"], best(stop), LiveEngine(denoiser, [Brightness("bright")], EngineOptions(batch_size=4)))[0]
    assert denoiser.calls == result.spent.nfe == 5 * (stop + 1) + STEPS - stop - 1, (stop, denoiser.calls, result.spent)
    scores = result.particles.scores[:, stop, 0]
    np.testing.assert_allclose(scores, [by_hand(made(), seed, stop) for seed in range(5)], rtol=1e-6)
    assert search(["a"], best(stop), DryEngine(denoiser.grid, ("bright",)))[0].spent.nfe == result.spent.nfe
    # The winner is the image of its seed: the look has left the particle where it was.
    alone = search(["a"], best(stop, 1), LiveEngine(made(), [Brightness("bright")]), seed=result.best.seed)[0]
    assert alone.best.reward == pytest.approx(result.best.reward)

recording = Recording(("a",), np.zeros((1, 8, STEPS + 1, 1)), made().grid, ("bright",))
with pytest.raises(ValueError, match="noised@2 asked for"):
    search(["a"], best(2), ReplayEngine(recording))
"""


def test_a_new_look_is_the_change_of_the_how_to(tmp_path: Path) -> None:
    copy_package(tmp_path)
    touched = change_package(tmp_path, "look.diff")
    assert touched == ["ttsnap/core/looks.py", "ttsnap/engine/looks.py"]
    run_trial(TRIAL, tmp_path)
