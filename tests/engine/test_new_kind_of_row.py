"""A kind of row that is added: the change that the how-to shows, in a copy of the package, against known answers."""

from __future__ import annotations

from pathlib import Path

from ..copied import change_package, copy_package, run_trial  # noqa: TID252

TRIAL = """
import dataclasses
import numpy as np
import pytest
import torch
from ttsnap.core import Need, fresh
from ttsnap.core.moves import mirror
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling.mixture import MixtureDenoiser

STEPS = 6

@dataclasses.dataclass(frozen=True)
class Mirrored:
    n: int | None = 4
    start: int = 0
    needs: frozenset = frozenset({Need.MIX})
    lockstep = False

    def init(self, task):
        return 0

    def step(self, state, particles, draws):
        if state == 0:
            return fresh(self.n, STEPS), 1
        if state == 3:
            return None, 3
        # First all seeds are mirrored, then what came of that: the mirrored picture of a mirrored one is the first.
        move = mirror(particles.moved[particles.moved >= 0], STEPS)
        return dataclasses.replace(move, rows=move.rows._replace(start=move.rows.start + self.start)), state + 1

class Bright:
    name = "bright"
    def __call__(self, images, prompts, level):
        return images.double().mean((1, 2, 3))

class Counted(MixtureDenoiser):
    rows = 0
    def predict(self, x, step, cond):
        self.rows += len(x)
        return super().predict(x, step, cond)

# A mixture that is symmetric about 0: opposite noise ends in opposite latents, whose pictures add up to 1.
mean = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
denoiser = Counted(torch.cat([mean, -mean]), torch.full((2,), 0.3), torch.ones(2), steps=STEPS)
result = search(["a"], Mirrored(), LiveEngine(denoiser, [Bright()]))[0]
scores = result.particles.scores[:, -1, 0]
np.testing.assert_allclose(scores[4:8], 1 - scores[:4], atol=1e-6)
np.testing.assert_allclose(scores[8:], scores[:4], atol=1e-6)
assert np.ptp(scores[:4]) > 0.01
assert result.particles.parent.tolist() == [-1] * 4 + list(range(8))
assert result.particles.seed.tolist() == [0, 1, 2, 3] * 3
assert denoiser.rows == result.spent.nfe == 3 * 4 * STEPS
assert (result.spent.seeds, result.spent.finished) == (4, 12)
assert search(["a"], Mirrored(), DryEngine(denoiser.grid, ("bright",)))[0].spent.nfe == result.spent.nfe
short = search(["a"], Mirrored(), LiveEngine(denoiser, [Bright()]), "40nfe")[0]
assert short.spent.nfe == 6 * STEPS

with pytest.raises(ValueError, match=r"mirrored initial noise starts at step 0, got .* start \\[2, 2, 2, 2\\]"):
    search(["a"], Mirrored(start=2), LiveEngine(denoiser, [Bright()]))
with pytest.raises(ValueError, match="does not declare Need.MIX"):
    search(["a"], Mirrored(needs=frozenset()), LiveEngine(denoiser, [Bright()]))
recording = Recording(("a",), np.zeros((1, 8, STEPS + 1, 1)), denoiser.grid, ("bright",))
with pytest.raises(ValueError, match="a recording holds no noise"):
    search(["a"], Mirrored(), ReplayEngine(recording))
"""


def test_a_new_kind_of_row_is_the_change_of_the_how_to(tmp_path: Path) -> None:
    copy_package(tmp_path)
    touched = change_package(tmp_path, "row.diff")
    assert touched == ["ttsnap/core/moves.py", "ttsnap/core/validate.py", "ttsnap/engine/rows.py"]
    run_trial(TRIAL, tmp_path)
