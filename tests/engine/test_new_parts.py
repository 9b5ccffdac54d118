"""A look and a kind of row that are added: the changes that the how-to shows, in a copy of the
package, against answers found by hand and known ones."""

from __future__ import annotations

from ..copied import change_package, copy_package, run_trial  # noqa: TID252

TRIAL = """
import dataclasses
import numpy as np
import pytest
import torch
from tests.counted import Brightness, Counted
from tests.scripted import Played
from ttsnap.core import Need, advance, fresh
from ttsnap.core.looks import Noised
from ttsnap.core.moves import mirror
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling import rng

STEPS = 6

def engine_of(means):
    denoiser = Counted(means, torch.full((len(means),), 0.3), torch.ones(len(means)), steps=STEPS)
    return LiveEngine(denoiser, [Brightness("bright")], EngineOptions(batch_size=4))

def refused(algorithm, where, why):
    with pytest.raises(ValueError, match=why):
        search(["a"], algorithm, where)

# --- a look

def made():
    return engine_of(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

def best(stop, n=5):
    moves = lambda p: fresh(n, stop, look=Noised()), lambda p: advance(p, p.ranked()[:1], STEPS)
    return Played(moves, needs=Noised().needs, n=n)

def by_hand(denoiser, seed, stop):
    one, x = torch.zeros(1, dtype=int), denoiser.init_latents([rng.seeded(seed)])
    for k in range(stop):
        x, _ = denoiser.kernel.step(x, denoiser.predict(x, one + k, one), one + k, [(seed, 0)], [None])
    return float(denoiser.decode(x).mean())

for stop in (2, STEPS - 1):
    engine = made()
    result = search(["a"], best(stop), engine)[0]
    assert engine.denoiser.calls == result.spent.nfe == 5 * (stop + 1) + STEPS - stop - 1, (stop, result.spent)
    scores = result.particles.scores[:, stop, 0]
    np.testing.assert_allclose(scores, [by_hand(engine.denoiser, seed, stop) for seed in range(5)], rtol=1e-6)
    assert search(["a"], best(stop), DryEngine(engine.grid, ("bright",)))[0].spent.nfe == result.spent.nfe
    # The winner is the image of its seed: the look has left the particle where it was.
    alone = search(["a"], best(stop, 1), made(), seed=result.best.seed)[0]
    assert alone.best.reward == pytest.approx(result.best.reward)
recording = ReplayEngine(Recording(("a",), np.zeros((1, 8, STEPS + 1, 1)), engine.grid, ("bright",)))
refused(best(2), recording, "noised@2 asked for")

# --- a kind of row

def mirrored(start=0, needs=frozenset({Need.MIX})):
    def again(particles):
        # First all seeds are mirrored, then what came of that: the mirrored picture of a mirrored one is the first.
        move = mirror(particles.moved[particles.moved >= 0], STEPS)
        return dataclasses.replace(move, rows=move.rows._replace(start=move.rows.start + start))
    return Played((lambda p: fresh(4, STEPS), again, again), needs=needs, n=4)

# A mixture that is symmetric about 0: opposite noise ends in opposite latents, whose pictures add up to 1.
mean = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
engine = engine_of(torch.cat([mean, -mean]))
result = search(["a"], mirrored(), engine)[0]
scores = result.particles.scores[:, -1, 0]
np.testing.assert_allclose(scores[4:8], 1 - scores[:4], atol=1e-6)
np.testing.assert_allclose(scores[8:], scores[:4], atol=1e-6)
assert np.ptp(scores[:4]) > 0.01
assert result.particles.parent.tolist() == [-1] * 4 + list(range(8))
assert engine.denoiser.calls == result.spent.nfe == 3 * 4 * STEPS
assert search(["a"], mirrored(), engine, "40nfe")[0].spent.nfe == 6 * STEPS
refused(mirrored(2), engine, "mirrored initial noise starts at step 0, got .* start")
refused(mirrored(needs=frozenset()), engine, "does not declare Need.MIX")
refused(mirrored(), recording, "a recording holds no noise")
"""


def test_new_looks_and_kinds_of_rows_are_the_changes_of_the_how_to(tmp_path):
    copy_package(tmp_path)
    touched = {diff: change_package(tmp_path, diff) for diff in ("look.diff", "row.diff")}
    assert touched == {
        "look.diff": ["ttsnap/core/looks.py", "ttsnap/engine/looks.py"],
        "row.diff": ["ttsnap/core/moves.py", "ttsnap/core/validate.py", "ttsnap/engine/rows.py"],
    }
    run_trial(TRIAL, tmp_path)
