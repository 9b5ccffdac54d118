from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, make_algorithm, search
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
from ttsnap.core.grid import Grid, Task
from ttsnap.loop.dry import DryEngine

from ..scripted import Scripted  # noqa: TID252

GRID = Grid(tuple(np.linspace(1, 0, 21)))


def by_table(scores: Any) -> Scripted:
    """Scores by table: scores[uid, step]; the uids of fresh seeds count from 0, as their seeds do."""
    return Scripted(lambda uid, step: float(scores[uid, step]), grid=GRID)


def by_hand(scores: Any, n: int, keep: Any, steps: Any) -> tuple[int, int]:
    """The paper's loop in plain Python: winner and evaluations (a score at step s takes s + 1)."""
    alive, paid, done = list(range(n)), 0, 0
    for k, s in zip(keep, steps, strict=True):
        paid += len(alive) * (s + 1 - done)
        done = s + 1
        alive.sort(key=lambda i: -scores[i, s])
        alive = alive[: max(1, int(k * len(alive) + 0.5))]
    paid += len(alive) * (20 - done)
    return max(alive, key=lambda i: scores[i, 20]), paid


@pytest.mark.parametrize("seed", range(20))
def test_pruning_is_the_papers_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(30, 21)).cumsum(1)
    keep, steps = tuple(rng.uniform(0.2, 0.9, 3)), tuple(sorted(rng.choice(20, 3, replace=False).tolist()))
    (result,) = search([""], SeedPruning(30, keep, steps=steps), by_table(scores))
    winner, paid = by_hand(scores, 30, keep, steps)
    assert (result.best.seed, result.spent.nfe) == (winner, paid)


def test_levels_and_steps_agree() -> None:
    a = SeedPruning(4, (0.5, 0.5), levels=(0.7, 0.45)).init(Task(GRID))
    b = SeedPruning(4, (0.5, 0.5), steps=(6, 11)).init(Task(GRID))
    assert a == b
    assert [check[:2] for check in a.checks] == [(6, 0.5), (11, 0.5), (20, 1.0)]


def test_checks_that_meet_on_a_coarse_grid_are_merged() -> None:
    coarse = Grid((1.0, 0.5, 0.0))
    state = SeedPruning(4, (0.5, 0.5), levels=(0.8, 0.6)).init(Task(coarse))
    assert [check[:2] for check in state.checks] == [(1, 0.25), (2, 1.0)]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["seed-pruning", "ttsnap"])
def test_checks_by_level_at_the_end_of_a_coarse_grid_are_dropped(name: str, steps: int) -> None:
    """Levels of a video model, which are high up to the end: no check lies within one to three steps."""
    levels = [12 * t / (1 + 11 * t) for t in np.linspace(1, 0, steps + 1)]
    engine = Scripted(lambda uid, step: float(uid), grid=Grid(tuple(levels)))
    (result,) = search([""], make_algorithm(name), engine, "12nfe")
    assert result.images
    assert result.spent.nfe <= 12
    if name == "seed-pruning":
        assert result.spent.nfe == 12
        assert len(result.particles.scores[:, -1, 0]) == 12 // steps
    with pytest.raises(ValueError, match=f"grid of {steps} steps"):
        search([""], SeedPruning(4, (0.5,), steps=(steps,)), engine, "12nfe")


def test_as_many_survive_as_are_to_be_kept() -> None:
    scores = np.random.default_rng(0).normal(size=(64, 21))
    (result,) = search([""], SeedPruning(), by_table(scores), "400nfe", keep=6)
    assert len(result.images) == 6
    assert result.spent.nfe <= 400
    (result,) = search([""], SeedPruning(), by_table(scores), "45nfe", keep=6)
    assert 1 <= len(result.images) < 6
    assert "of the 6 images asked for" in result.warnings[-1]


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (BestOfN, {"n": 0}, "n .* got 0"), (SeedPruning, {"n": -1}, "n .* got -1"),
    (SeedPruning, {"keep": (0.5,), "levels": (0.5, 0.4)}, "1 keep ratios"),
    (SeedPruning, {"keep": (1.5,), "levels": (0.5,)}, r"keep\[0\] .* got 1.5"),
    (SeedPruning, {"keep": (0.5, 0.5), "levels": (0.4, 0.5)}, "noisy to clean"),
    (SeedPruning, {"keep": (0.5,), "levels": (2,)}, "levels"),
    (SMC, {"n": 0}, "n"), (SMC, {"every": 0}, "every"), (SMC, {"lam": -1.0}, "lam"), (SMC, {"gamma": 0.0}, "gamma"),
    (SMC, {"potential": "min"}, "potential 'min'"), (SMC, {"temper": "no"}, "temper 'no'"),
    (SMC, {"resampler": "no"}, "resampler 'no'"), (SMC, {"temper": "adaptive", "ess": 1.0}, "ess below 1"),
    (SMC, {"ess": 1.5}, "ess"), (SMC, {"shrink": 0.0}, "shrink"), (SMC, {"first": 0.2}, "levels"),
    (CoDe, {"n": 0}, "n .* got 0"), (CoDe, {"block": 0}, "block"), (CoDe, {"temperature": -1.0}, "temperature"),
    (RBF, {"streams": 0}, "streams"), (RBF, {"finish": "last"}, "finish 'last'"),
    (VerifierThreshold, {"quantiles": (0.5, 2.0)}, r"quantiles\[1\]"), (TopNoises, {"keep": 0}, "keep .* got 0"),
    (EpsilonGreedy, {"n": 0}, "n"), (EpsilonGreedy, {"width": 0}, "width"), (EpsilonGreedy, {"streams": 0}, "streams"),
    (EpsilonGreedy, {"eps": 1.1}, "eps"), (EpsilonGreedy, {"lam": 0.0}, "lam"),
    (SearchOverPaths, {"n": 0}, "at least 1"), (SearchOverPaths, {"start": 1.0}, "start"),
    (ZeroOrder, {"n": 0}, "at least 1"), (ZeroOrder, {"mix": 1.0}, "mix"), (ZeroOrder, {"keep": 0.0}, "keep"),
    (BestFirst, {"block": 0}, "block"), (BestFirst, {"bonus": -1}, "bonus"), (DepthFirst, {"levels": ()}, "fall"),
    (DepthFirst, {"levels": (0.5,), "thresholds": (1.0,)}, "threshold"), (DepthFirst, {"back": 0.0}, "back"),
    (Evolution, {"generations": 0}, "generations"), (Evolution, {"parents": 0}, "parents"),
    (Evolution, {"mix": 1}, "mix"), (Evolution, {"draft_share": 1}, "draft_share"),
    (Evolution, {"keep": (0.5, 0.5)}, "2 keep ratios"),
    (NoiseAscent, {"angle": 0}, "got 0"), (NoiseAscent, {"angle": 2.0}, "got"),
    (NoiseAscent, {"rounds": 0}, "got 0"), (NoiseAscent, {"ascends": -1}, "got -1"),
    (NoiseAscent, {"held_out": 0}, "got"), (NoiseAscent, {"held_out": 1, "weights": (1, 1)}, "got"),
    (NoiseAscent, {"held_out": 2, "weights": (1, 0)}, "got"), (NoiseAscent, {"least": 0.5}, "got"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "said"), BAD, ids=[f"{k.__name__}-{'-'.join(o)}" for k, o, _ in BAD])
def test_bad_settings_are_shown(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**options)


@pytest.mark.parametrize(("algorithm", "levels", "said"), [
    (VerifierThreshold(thresholds=(1.0,)), (1, 0.5, 0.2, 0), "1 thresholds for 2"),
    (DepthFirst((0.52, 0.51)), tuple(np.linspace(1, 0, 11)), "one step"),
    (SearchOverPaths(1), (1.0, 0.5, 0.0), "3 steps"),
])  # fmt: skip
def test_what_does_not_fit_a_grid_is_shown(algorithm: Any, levels: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        algorithm.init(Task(Grid(levels), 1, 100.0))


@pytest.mark.parametrize(("given", "said"), [
    (("best", {}), "unknown algorithm 'best'"), (("missing.json", {}), "missing.json"),
    (("best-of-n", {"keep": [1]}), r"\['keep'\]; it has \['n'\]"),
])  # fmt: skip
def test_names_and_options_that_are_none_are_shown(given: Any, said: str) -> None:
    name, options = given
    with pytest.raises(ValueError, match=said):
        make_algorithm(name, **options)


def test_algorithm_from_json(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"name": "seed-pruning", "keep": [0.5], "levels": [0.4]}))
    assert make_algorithm(str(path), n=3) == SeedPruning(3, (0.5,), (0.4,))
    path.write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        make_algorithm(str(path))


@pytest.mark.parametrize("spec", [
    {"name": "seed-pruning", "n": 2.5}, {"name": "seed-pruning", "n": True}, {"name": "seed-pruning", "n": [3]},
    {"name": "seed-pruning", "keep": "half"}, {"name": "seed-pruning", "keep": [{}]},
    {"name": "seed-pruning", "levels": [None]}, {"name": "smc", "potential": 3}, {"name": "funnel", "ess": "much"},
    {"name": "fk-steering", "lam": "nan"}, {"name": "verifier-threshold", "quantiles": [0.5]},
    {"name": "best-first", "reseed": 1}, {"name": "best-first", "n": 10**400},
    {"name": "price-of-compute", "forecast": None}, {"name": "price-of-compute", "forecast": [1]},
    {"name": "nested", "first": {"name": "top-noises", "n": 1.5}}, {"name": "nested", "first": 3},
    {"name": "nested", "first": "other.json"}, {"name": "nested", "second": {"name": "refined", "first": ["x.json"]}},
    {"name": "os:system"}, {"name": ["best-of-n"]},
])  # fmt: skip
def test_files_hold_known_names_and_values_of_their_types(spec: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"name": "top-noises"}')
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"must be|unknown|another file|theirs\.json") as caught:
        make_algorithm(str(path))
    words = set(re.findall(r"[a-z][\w.:-]*", str(spec))) - {"name"}
    assert any(word in str(caught.value) for word in words)


@pytest.mark.parametrize("spec", [None, 3, True, ["smc"]])
def test_what_is_no_algorithm_is_said(spec: Any) -> None:
    with pytest.raises(ValueError, match="type Algorithm"):
        make_algorithm(spec, n=3)


def test_numbers_of_numpy_and_lists_are_taken_as_declared() -> None:
    made = make_algorithm("seed-pruning", n=np.int64(3), keep=[np.float32(0.5)], levels=[0.4])
    assert made == SeedPruning(3, (0.5,), (0.4,))
    assert type(made.n) is int


def test_more_seeds_than_a_search_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="1,000,000,000,000 seeds at once"):
        search(["a"], BestOfN(10**12), DryEngine(Grid((1.0, 0.0)), ("r",)), "4nfe")


def test_price_of_compute_without_a_forecast_says_which_command_makes_one() -> None:
    with pytest.raises(ValueError, match=r"forecast .*ttsnap calibrate"):
        make_algorithm("price-of-compute")
    with pytest.raises(ValueError, match=r"needs a forecast"):
        make_algorithm("price-of-compute", n=3)
