"""An algorithm that is added: the change that the how-to shows, in a copy of the package, against
an answer by hand."""

from __future__ import annotations

import re

from ..copied import change_package, copy_package, recipe, run_trial  # noqa: TID252

TRIAL = """
import numpy as np
from ttsnap import make_algorithm
from ttsnap.algorithms import ALGORITHMS
from ttsnap.algorithms.options import options_of
from ttsnap.cli import parse
from ttsnap.core import Grid
from ttsnap.loop.search import search
from ttsnap.recordings.replay import Recording, ReplayEngine

assert list(ALGORITHMS)[3] == "halving"
assert [(o.name, o.default) for o in options_of("halving")] == [("n", None), ("level", 0.6)]
assert parse(["generate", "x", "--algorithm", "halving"])[1].algorithm == "halving"

# Seeds 0 to 5 at four steps: at level 0.5, step 2, the better half is 5, 1 and 3; of these 3 ends best.
scores = np.zeros((1, 6, 5, 1))
scores[0, :, 2, 0] = [0, 5, 1, 3, 2, 6]
scores[0, :, 4, 0] = [9, 1, 8, 4, 7, 2]
engine = ReplayEngine(Recording(("a",), scores, Grid((1.0, 0.75, 0.5, 0.25, 0.0)), ("r",)))
result = search(["a"], make_algorithm("halving", n=6), engine)[0]
assert result.best.seed == 3
assert np.flatnonzero(result.particles.alive).tolist() == [1, 3, 5]
assert result.spent.nfe == 6 * 3 + 3 * 1
assert search(["a"], make_algorithm("halving"), engine, "14nfe")[0].spent.seeds == 4
"""


def test_a_new_algorithm_is_the_change_of_the_how_to(tmp_path):
    copy_package(tmp_path)
    (code,) = re.findall(
        r"^```python\n(# halving.py\n.*?)^```", recipe("An algorithm"), re.S | re.M
    )
    (tmp_path / "ttsnap" / "algorithms" / "halving.py").write_text(code, encoding="utf-8")
    (entry,) = re.findall(r"^```diff\n(.*?)^```", recipe("An algorithm"), re.S | re.M)
    assert change_package(tmp_path, entry) == ["ttsnap/algorithms/catalogue.py"]
    run_trial(TRIAL, tmp_path)
