"""A kind of row that is added: the change that the how-to shows, in a copy of the package, against known answers."""

from __future__ import annotations

from pathlib import Path

from ..copied import change_package, copy_package, run_trial  # noqa: TID252

TRIAL = """
import dataclasses
import numpy as np
import pytest
import torch
from tests.counted import Brightness, Counted
from ttsnap.core import Need, fresh
from ttsnap.core.moves import mirror
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.search import search
from ttsnap.recordings.replay import Recording, ReplayEngine

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
        if state in (0, 3):
            return fresh(self.n, STEPS) if state == 0 else None, state + 1
        # First all seeds are mirrored, then what came of that: the mirrored picture of a mirrored one is the first.
        move = mirror(particles.moved[particles.moved >= 0], STEPS)
        return dataclasses.replace(move, rows=move.rows._replace(start=move.rows.start + self.start)), state + 1

# A mixture that is symmetric about 0: opposite noise ends in opposite latents, whose pictures add up to 1.
mean = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
denoiser = Counted(torch.cat([mean, -mean]), torch.full((2,), 0.3), torch.ones(2), steps=STEPS)
engine = LiveEngine(denoiser, [Brightness("bright")])
result = search(["a"], Mirrored(), engine)[0]
scores = result.particles.scores[:, -1, 0]
np.testing.assert_allclose(scores[4:8], 1 - scores[:4], atol=1e-6)
np.testing.assert_allclose(scores[8:], scores[:4], atol=1e-6)
assert np.ptp(scores[:4]) > 0.01
assert result.particles.parent.tolist() == [-1] * 4 + list(range(8))
assert denoiser.calls == result.spent.nfe == 3 * 4 * STEPS
assert search(["a"], Mirrored(), engine, "40nfe")[0].spent.nfe == 6 * STEPS

recording = Recording(("a",), np.zeros((1, 8, STEPS + 1, 1)), denoiser.grid, ("bright",))
for algorithm, where, why in (
    (Mirrored(start=2), engine, "mirrored initial noise starts at step 0, got .* start"),
    (Mirrored(needs=frozenset()), engine, "does not declare Need.MIX"),
    (Mirrored(), ReplayEngine(recording), "a recording holds no noise"),
):
    with pytest.raises(ValueError, match=why):
        search(["a"], algorithm, where)
"""


def test_a_new_kind_of_row_is_the_change_of_the_how_to(tmp_path: Path) -> None:
    copy_package(tmp_path)
    touched = change_package(tmp_path, "row.diff")
    assert touched == ["ttsnap/core/moves.py", "ttsnap/core/validate.py", "ttsnap/engine/rows.py"]
    run_trial(TRIAL, tmp_path)
