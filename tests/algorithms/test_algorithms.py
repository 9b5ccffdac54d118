from __future__ import annotations

import json
import re

import numpy as np
import pytest

from ttsnap import BestOfN, Grid, SeedPruning, make_algorithm, search
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.depth_first import DepthFirst
from ttsnap.algorithms.epsilon_greedy import EpsilonGreedy
from ttsnap.algorithms.evolution import Evolution
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.search_over_paths import SearchOverPaths
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.tree import BestFirst
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core import Cost, Task
from ttsnap.core.selection import Selection
from ttsnap.core.start import Start

from ..scripted import Scripted, noisy  # noqa: TID252

GRID = Grid(tuple(np.linspace(1, 0, 21)))


def by_hand(scores, n, keep, steps):
    """The paper's loop in plain Python: winner and evaluations (a score at step s takes s + 1)."""
    alive, paid, done = list(range(n)), 0, 0
    for k, s in zip(keep, steps, strict=True):
        paid += len(alive) * (s + 1 - done)
        done = s + 1
        alive.sort(key=lambda i: -scores[i, s])
        alive = alive[: max(1, int(k * len(alive) + 0.5))]
    paid += len(alive) * (20 - done)
    return max(alive, key=lambda i: scores[i, 20]), paid


@pytest.mark.parametrize("seed", range(12))
def test_pruning_is_the_papers_loop(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(30, 21)).cumsum(1)
    keep, steps = (
        tuple(rng.uniform(0.2, 0.9, 3)),
        tuple(sorted(rng.choice(20, 3, replace=False).tolist())),
    )
    table = Scripted(lambda uid, step: float(scores[uid, step]), grid=GRID)
    (result,) = search([""], SeedPruning(30, keep, steps=steps), table)
    winner, paid = by_hand(scores, 30, keep, steps)
    assert (result.best.seed, result.spent.nfe) == (winner, paid)


@pytest.mark.parametrize(
    ("where", "grid", "checks"),
    [
        ({"levels": (0.7, 0.45)}, GRID, [(6, 0.5), (11, 0.5), (20, 1.0)]),
        ({"steps": (6, 11)}, GRID, [(6, 0.5), (11, 0.5), (20, 1.0)]),
        # that meet on a coarse grid
        ({"levels": (0.8, 0.6)}, Grid((1.0, 0.5, 0.0)), [(1, 0.25), (2, 1.0)]),
    ],
)
def test_checks_are_by_level_or_step(where, grid, checks):
    assert [
        check[:2] for check in SeedPruning(4, (0.5, 0.5), **where).init(Task(grid)).checks
    ] == checks


@pytest.mark.parametrize(
    "given",
    [
        {"keep": (0.3,), "levels": (0.6,)},
        {"keep": (0.3,)},
        {"levels": (0.6,)},
        {"draft_share": 0.2},
    ],
)
def test_a_default_that_is_written_out_is_kept_to_where_drafts_are_finished(
    given,
):
    task = Task(GRID, draft_calls=1, draft_cost=0.5, start=Start(cost=Cost(draft_calls=1)))
    assert SeedPruning(**given).init(task) == SeedPruning(
        keep=(0.3,), levels=(0.6,), draft_share=0.2
    ).init(task)
    assert [check.step for check in SeedPruning(**given).init(task).checks] == [0, 8, 20]
    assert [check.step for check in SeedPruning().init(task).checks] == [0, 20]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["seed-pruning", "ttsnap"])
def test_checks_by_level_at_the_end_of_a_coarse_grid_are_dropped(name, steps):
    """Levels of a video model, which are high up to the end: no check lies within one to three
    steps."""
    levels = [12 * t / (1 + 11 * t) for t in np.linspace(1, 0, steps + 1)]
    engine = Scripted(lambda uid, step: float(uid), grid=Grid(tuple(levels)))
    (result,) = search([""], make_algorithm(name), engine, "12nfe")
    assert result.spent.nfe <= 12
    if name == "seed-pruning":
        assert len(result.particles.scores[:, -1, 0]) == 12 // steps


@pytest.mark.parametrize(("nfe", "images"), [(400, 6), (45, 2)])
def test_as_many_survive_as_are_to_be_kept(nfe, images):
    (result,) = search(
        [""], SeedPruning(), Scripted(noisy(0), grid=GRID), f"{nfe}nfe", selection=Selection(keep=6)
    )
    assert len(result.images) == images
    assert images == 6 or "6 images" in result.warnings[-1]


BAD = [
    (BestOfN, {"n": 0}, "n .* got 0"),
    (SeedPruning, {"n": -1}, "n .* got -1"),
    (SeedPruning, {"keep": (0.5,), "levels": (0.5, 0.4)}, "1 keep ratios"),
    (SeedPruning, {"keep": (1.5,), "levels": (0.5,)}, r"keep\[0\] .* got 1.5"),
    (SeedPruning, {"keep": (0.5, 0.5), "levels": (0.4, 0.5)}, "noisy to clean"),
    (SeedPruning, {"keep": (0.5,), "levels": (2,)}, "levels"),
    (SMC, {"n": 0}, "n"),
    (SMC, {"every": 0}, "every"),
    (SMC, {"lam": -1.0}, "lam"),
    (SMC, {"gamma": 0.0}, "gamma"),
    (SMC, {"potential": "min"}, "potential .*'min'"),
    (SMC, {"temper": "no"}, "temper .*'no'"),
    (SMC, {"resampler": "no"}, "resampler 'no'"),
    (SMC, {"temper": "adaptive", "ess": 1.0}, "ess below 1"),
    (SMC, {"ess": 1.5}, "ess"),
    (SMC, {"shrink": 0.0}, "shrink"),
    (SMC, {"first": 0.2}, "levels"),
    (CoDe, {"n": 0}, "n .* got 0"),
    (CoDe, {"block": 0}, "block"),
    (CoDe, {"temperature": -1.0}, "temperature"),
    (RBF, {"streams": 0}, "streams"),
    (RBF, {"finish": "last"}, "finish .*'last'"),
    (VerifierThreshold, {"quantiles": (0.5, 2.0)}, r"quantiles\[1\]"),
    (TopNoises, {"keep": 0}, "keep .* got 0"),
    (EpsilonGreedy, {"n": 0}, "n"),
    (EpsilonGreedy, {"width": 0}, "width"),
    (EpsilonGreedy, {"streams": 0}, "streams"),
    (EpsilonGreedy, {"eps": 1.1}, "eps"),
    (EpsilonGreedy, {"lam": 0.0}, "lam"),
    (SearchOverPaths, {"n": 0}, "n must be .* 1"),
    (SearchOverPaths, {"legs": (5, 5)}, "legs"),
    (SearchOverPaths, {"start": 1.0}, "start"),
    (ZeroOrder, {"n": 0}, "n must be .* 1"),
    (ZeroOrder, {"mix": 1.0}, "mix"),
    (ZeroOrder, {"keep": 0.0}, "keep"),
    (BestFirst, {"block": 0}, "block"),
    (BestFirst, {"bonus": -1}, "bonus"),
    (DepthFirst, {"levels": ()}, "fall"),
    (DepthFirst, {"levels": (0.5,), "thresholds": (1.0,)}, "threshold"),
    (DepthFirst, {"back": 0.0}, "back"),
    (Evolution, {"generations": 0}, "generations"),
    (Evolution, {"parents": 0}, "parents"),
    (Evolution, {"mix": 1}, "mix"),
    (Evolution, {"draft_share": 1}, "draft_share"),
    (Evolution, {"keep": (0.5, 0.5)}, "2 keep ratios"),
    (NoiseAscent, {"angle": 0}, "got 0"),
    (NoiseAscent, {"angle": 2.0}, "got"),
    (NoiseAscent, {"rounds": 0}, "got 0"),
    (NoiseAscent, {"ascends": -1}, "got -1"),
    (NoiseAscent, {"held_out": 0}, "got"),
    (NoiseAscent, {"held_out": 1, "weights": (1, 1)}, "got"),
    (NoiseAscent, {"held_out": 2, "weights": (1, 0)}, "got"),
    (NoiseAscent, {"least": 0.5}, "got"),
]


@pytest.mark.parametrize(
    ("kind", "options", "said"), BAD, ids=[f"{k.__name__}-{'-'.join(o)}" for k, o, _ in BAD]
)
def test_bad_settings_are_shown(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind(**options)


OF_35 = tuple(np.linspace(1, 0, 36))


@pytest.mark.parametrize(
    ("algorithm", "levels", "said"),
    [
        (VerifierThreshold(thresholds=(1.0,)), (1, 0.5, 0.2, 0), "1 thresholds for 2"),
        (DepthFirst((0.52, 0.51)), tuple(np.linspace(1, 0, 11)), "one step"),
        (SearchOverPaths(1), (1.0, 0.5, 0.0), "3 steps"),
        (SeedPruning(4, (0.5,), steps=(2,)), (1, 0.5, 0), "2 steps"),
        *[(SMC(4, steps=steps), OF_35, "below 34") for steps in ((6, 6), (8, 7), (34,), (40,))],
    ],
)
def test_what_does_not_fit_a_grid_is_shown(algorithm, levels, said):
    with pytest.raises(ValueError, match=said):
        algorithm.init(Task(Grid(levels), 1, 100.0))


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ("best", {}, "unknown algorithm 'best'"),
        ("missing.json", {}, "missing.json"),
        ("best-of-n", {"keep": [1]}, r"\['keep'\]; it has \['n'\]"),
        ("price-of-compute", {"n": 3}, "ttsnap tune RECORDING --policy"),
        *[(spec, {"n": 3}, "of Algorithm") for spec in (None, 3, True, ["smc"])],
    ],
)
def test_what_is_no_algorithm_or_option_of_it_is_shown(given, options, said):
    with pytest.raises(ValueError, match=said):
        make_algorithm(given, **options)


def test_options_of_a_file_and_numbers_of_numpy_are_taken_as_declared(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"name": "seed-pruning", "keep": [0.5], "levels": [0.4]}))
    made = make_algorithm("seed-pruning", n=np.int64(3), keep=[np.float32(0.5)], levels=[0.4])
    assert make_algorithm(str(path), n=3) == made == SeedPruning(3, (0.5,), (0.4,))
    assert type(made.n) is int
    path.write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        make_algorithm(str(path))


def test_an_object_takes_options_of_its_own_only():
    with pytest.raises(ValueError, match="meant"):
        make_algorithm(make_algorithm("best-of-n"), meant=1)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "seed-pruning", "n": 2.5},
        {"name": "seed-pruning", "n": True},
        {"name": "seed-pruning", "n": [3]},
        {"name": "seed-pruning", "keep": "half"},
        {"name": "seed-pruning", "keep": [{}]},
        {"name": "seed-pruning", "levels": [None]},
        {"name": "smc", "potential": 3},
        {"name": "funnel", "ess": "much"},
        {"name": "fk-steering", "lam": "nan"},
        {"name": "verifier-threshold", "quantiles": [0.5]},
        {"name": "best-first", "reseed": 1},
        {"name": "best-first", "n": 10**400},
        {"name": "price-of-compute", "forecast": None},
        {"name": "price-of-compute", "forecast": [1]},
        {"name": "nested", "first": {"name": "top-noises", "n": 1.5}},
        {"name": "nested", "first": 3},
        {"name": "nested", "first": "other.json"},
        {"name": "nested", "second": {"name": "refined", "first": ["x.json"]}},
        {"name": "os:system"},
        {"name": ["best-of-n"]},
    ],
)
def test_files_hold_known_names_and_values_of_their_types(spec, tmp_path):
    (tmp_path / "other.json").write_text('{"name": "top-noises"}')
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(
        ValueError, match=r"must be|missing|unknown|another file|theirs\.json"
    ) as caught:
        make_algorithm(str(path))
    words = set(re.findall(r"[a-z][\w.:-]*", str(spec))) - {"name"}
    assert any(word in str(caught.value) for word in words)
