"""Sequential Monte Carlo against answers in closed form, and resampling against its bounds.

With n particles the sum of the final weights is an unbiased estimate of Z = E[exp(lam r)], and sum_i w_i f(x_i) one of
E[f exp(lam r)], for any potential, resampler, threshold and temper, adaptive ones included: so z-tests are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap import make_algorithm, search
from ttsnap.algorithms.smc.resampling import RESAMPLERS, ess, log_sum_exp, normalised, temper_by_ess
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import fresh
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.kernels import Ddim
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.rng import noise

GRID = Grid(tuple(np.linspace(1, 0, 7)))
everywhere: dict[str, Any] = {"every": 1, "first": 1.0, "last": 0.0}


# --- weights and resampling ---------------------------------------------------------------------------------------


def test_weights_survive_any_size() -> None:
    logw = np.array([0.0, np.log(3.0), -np.inf])
    for shift in (0.0, 1e4, -1e4, 1e6):
        np.testing.assert_allclose(normalised(logw + shift), [0.25, 0.75, 0], atol=1e-9)
        assert log_sum_exp(logw + shift) == pytest.approx(shift + np.log(4))
        assert ess(logw + shift) == pytest.approx(1 / (0.25**2 + 0.75**2))
    nothing = np.full(4, -np.inf)
    assert normalised(nothing).tolist() == [0.25] * 4
    assert ess(nothing) == 4
    assert log_sum_exp(nothing) == -np.inf
    assert normalised(np.array([1e4, -1e4, 1e4])).tolist() == [0.5, 0, 0.5]


def test_temperature_stops_where_the_sample_thins() -> None:
    r = np.random.default_rng(0).normal(size=50)
    lam = temper_by_ess(lambda lam: lam * r, 0.0, 10.0, 25.0)
    assert 0 < lam < 10
    assert ess(lam * r) == pytest.approx(25, abs=1e-6)
    assert ess(lam * r) < 25
    assert temper_by_ess(lambda lam: lam * r, 0.0, 0.1, 25.0) == 0.1


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10)), min_size=1, max_size=20).filter(any)


@pytest.mark.parametrize("name", RESAMPLERS)
@settings(max_examples=150, deadline=None)
@given(weights=weights, m=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_counts_stay_within_the_bounds_of_their_scheme(name: str, weights: list[float], m: int, seed: int) -> None:
    w = np.array(weights)
    found = RESAMPLERS[name](w, m, np.random.default_rng(seed))
    assert found.shape == (m,)
    assert (w[found] > 0).all()
    counts, expected = np.bincount(found, minlength=len(w)), m * w / w.sum()
    if name in ("systematic", "ssp"):
        assert (counts >= np.floor(expected - 1e-9)).all()
        assert (counts <= np.ceil(expected + 1e-9)).all()
    if name == "residual":
        assert (counts >= np.floor(expected - 1e-9)).all()
    if name == "stratified":
        assert (np.abs(counts - expected) < 2 + 1e-9).all()


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize("m", [3, 7, 30])
def test_expected_counts_are_the_weights(name: str, m: int) -> None:
    rng = np.random.default_rng(0)
    w = np.array([0.31, 0.0, 0.02, 0.17, 0.24, 0.05, 0.21])
    counts = np.stack([np.bincount(RESAMPLERS[name](w, m, rng), minlength=7) for _ in range(6000)])
    spread = np.maximum(counts.std(0), 1e-9) / np.sqrt(len(counts))
    z = (counts.mean(0) - m * w) / spread
    assert np.abs(z[counts.std(0) > 0]).max() < 4
    np.testing.assert_allclose(counts.mean(0)[counts.std(0) == 0], (m * w)[counts.std(0) == 0], atol=1e-9)


@pytest.mark.parametrize("name", RESAMPLERS)
def test_resampling_of_nothing_is_even(name: str) -> None:
    found = np.bincount(RESAMPLERS[name](np.zeros(4), 4000, np.random.default_rng(0)), minlength=4)
    assert (np.abs(found - 1000) < 150).all()


def test_low_variance_schemes_vary_less() -> None:
    rng, w = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(10))
    x = np.arange(10.0)
    spread = {k: np.std([x[f(w, 10, rng)].mean() for _ in range(2000)]) for k, f in RESAMPLERS.items()}
    assert max(spread[k] for k in ("stratified", "systematic", "ssp", "residual")) < spread["multinomial"]


# --- a Markov chain without discretisation error ------------------------------------------------------------------


class Chain(DryEngine):
    """x_0 ~ N(0, 1), x_{k+1} = A x_k + B xi. Scores: r(E[x_K | x_k]), and that mean, for the test to read."""

    A, B = 0.9, 0.6

    def __init__(self, reward: Any, seed: int = 0) -> None:
        super().__init__(GRID, ("r", "x"))
        self.reward, self._rng = reward, np.random.default_rng(seed)
        self.x: dict[tuple[int, int], float] = {}

    @property
    def variance(self) -> float:
        """Of x_K."""
        v = 1.0
        for _ in range(GRID.steps):
            v = self.A**2 * v + self.B**2
        return v

    def submit(self, job: int, plan: Plan) -> None:
        uids, rows = plan.uid, plan.rows
        old = [self.x[job, p] if p >= 0 else self._rng.standard_normal() for p in rows.parent.tolist()]
        x, steps = np.array(old), rows.stop - rows.start
        for k in range(int(steps.max(initial=0))):
            x = np.where(steps > k, self.A * x + self.B * self._rng.standard_normal(len(x)), x)
        self.x.update({(job, uid): value for uid, value in zip(uids.tolist(), x.tolist(), strict=True)})
        end = self.A ** (GRID.steps - rows.stop) * x
        scores = np.stack([self.reward(end), end], 1)
        ahead = rows.stop < GRID.steps
        self._done.append(Outcome(job, uids, rows.stop, ahead, scores, [None] * len(uids)))


def first_reward(scores: Any) -> Any:
    return scores[..., 0]


@dataclass(frozen=True)
class Watched(SMC):
    """Keeps every final state, with the particles it speaks of."""

    seen: list[Any] = field(default_factory=list, compare=False)

    def step(self, s: Any, particles: Any, rng: Any) -> Any:
        move, s = super().step(s, particles, rng)
        if move is None:
            self.seen.append((s, particles.scores[s.uids, -1]))
        return move, s


def linear(x: Any) -> Any:
    return 0.5 * x


def quadratic(x: Any) -> Any:
    return 2.0 - 0.3 * (x - 1) ** 2


def exact(name: str, lam: float, v: float) -> tuple[float, float]:
    """Z and the posterior mean of x ~ N(0, v) under exp(lam r)."""
    if name == "linear":
        return float(np.exp(0.5 * (0.5 * lam) ** 2 * v)), 0.5 * lam * v
    c = 0.6 * lam  # exp(2 lam - c (x - 1)^2 / 2)
    precision = 1 / v + c
    return float(np.exp(2 * lam - 0.5 * c + 0.5 * c**2 / precision) / np.sqrt(v * precision)), c / precision


REWARD = {"linear": linear, "quadratic": quadratic}


def z_of(algorithm: Watched, reward: str, runs: int = 300, seed: int = 0) -> tuple[float, float]:
    """By how many standard errors the estimates of Z and of E[x exp(lam r)] are off."""
    chain = Chain(REWARD[reward], seed)
    search([f"{i}" for i in range(runs)], algorithm, chain, utility=first_reward, seed=seed)
    z, mean_ = exact(reward, algorithm.lam, chain.variance)
    assert len(algorithm.seen) == runs
    totals = np.array([np.exp(s.logw).sum() for s, _ in algorithm.seen])
    moments = np.array([(np.exp(s.logw) * scores[:, 1]).sum() for s, scores in algorithm.seen])
    found = [(totals, z), (moments, z * mean_)]
    off, more = [float((a.mean() - b) / (a.std(ddof=1) / np.sqrt(runs))) for a, b in found]
    return off, more


POTENTIALS = ("difference", "max", "sum", "current")
RUNS = [
    (p, t, tuple(RESAMPLERS)[(i + j) % 5], (0.5, 1.0, 0.0, 0.8)[(i + 2 * j) % 4], (1.0, 0.4)[(i + j) % 2],
     ("linear", "quadratic")[(i // 2 + j) % 2])
    for i, p in enumerate(POTENTIALS)
    for j, t in enumerate(("constant", "linear", "increase", "adaptive"))
]  # fmt: skip
SOME = [pytest.param(*run, marks=[pytest.mark.slow] if (i - i // 4) % 4 > 1 else []) for i, run in enumerate(RUNS)]
"""Each potential with two ways to temper, and each of those with two potentials, all resamplers, thresholds and rewards
among them; the rest is slow."""


@pytest.mark.parametrize(("potential", "temper", "resampler", "threshold", "shrink", "reward"), SOME)
def test_estimates_are_unbiased(
    potential: str, temper: str, resampler: str, threshold: float, shrink: float, reward: str
) -> None:
    if temper == "adaptive":
        threshold = min(threshold or 0.5, 0.8)
    lam = 0.4 if potential == "sum" else 1.0  # the sum's weights have heavy tails
    algorithm = Watched(12, lam, potential, temper, None, resampler, threshold, shrink=shrink, **everywhere)
    off = z_of(algorithm, reward)
    print(f"z = {off[0]:+.2f} {off[1]:+.2f}", potential, temper, resampler, threshold, shrink, reward)
    assert np.abs(off).max() < 4


class PublishedLastStep(Watched):
    """The last step weights by the running max, as FK steering's code does, instead of the finished reward."""

    def _log_potential(self, s: Any, r: Any, lam: float, stat: Any) -> Any:
        return lam * stat - s.total if s.last else super()._log_potential(s, r, lam, stat)


class LosesWeights(Watched):
    """Weights are forgotten where resampling was not triggered, as in FK steering's code."""

    def _resampled(self, s: Any, rng: Any) -> Any:
        s = super()._resampled(s, rng)
        return s._replace(logw=np.full(len(s.uids), s.log_z - np.log(len(s.uids))))


@pytest.mark.parametrize("broken", [PublishedLastStep, LosesWeights])
def test_broken_weights_are_found_out(broken: type[Watched]) -> None:
    off = z_of(broken(12, 1.0, "max", "constant", ess=0.5, **everywhere), "linear", runs=400)
    print("z of", broken.__name__, off)
    assert np.abs(off).max() > 6


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", ["constant", "linear", "increase", "adaptive"])
def test_without_resampling_weights_are_those_of_the_finished_reward(potential: str, temper: str) -> None:
    algorithm = Watched(7, 3.0, potential, temper, ess=0.0, **everywhere)
    search(["a"], algorithm, Chain(lambda x: x - 40), utility=first_reward)
    ((state, scores),) = algorithm.seen
    np.testing.assert_allclose(state.logw, 3.0 * scores[:, 0] - np.log(7), atol=1e-9)
    np.testing.assert_allclose(state.total, 3.0 * scores[:, 0], atol=1e-9)


def test_the_weighted_sample_comes_back() -> None:
    algorithm = Watched(7, 3.0, **everywhere)
    (result,) = search(["a"], algorithm, Chain(linear), utility=first_reward, keep=7)
    assert result.state is algorithm.seen[0][0]
    assert set(result.state.uids.tolist()) == {c.uid for c in result.images}
    assert np.exp(result.state.logw).sum() == pytest.approx(np.exp(result.state.log_z))


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", ["constant", "adaptive"])
def test_adding_to_all_rewards_changes_nothing_else(potential: str, temper: str) -> None:
    found = []
    for shift in (0.0, 1e4, -1e4):
        algorithm = Watched(16, 2.0, potential, temper, **everywhere)
        (result,) = search(["a"], algorithm, Chain(lambda x, c=shift: x + c), utility=first_reward)
        found.append((algorithm.seen[0][0], [(m["parents"], m["uids"], m["drop"]) for m in result.trace]))
    for (state, moves), shift in zip(found[1:], (1e4, -1e4), strict=True):
        assert moves == found[0][1]
        np.testing.assert_allclose(normalised(state.logw), normalised(found[0][0].logw), atol=1e-6)
        assert state.log_z == pytest.approx(found[0][0].log_z + 2.0 * shift, abs=1e-6)
    assert len({tuple(parents) for parents, _, _ in found[0][1][1:]}) > 1


def test_negative_rewards_are_told_apart_by_the_max() -> None:
    """The published running max starts at 0, where all negative rewards tie."""
    algorithm = Watched(8, 10.0, "max", "constant", **everywhere)
    (result,) = search(["a"], algorithm, Chain(lambda x: x - 1e4), utility=first_reward)
    assert len(set(result.trace[1]["parents"])) < 8
    np.testing.assert_array_equal(algorithm.seen[0][0].stat, algorithm.seen[0][0].stat.clip(max=-9e3))


# --- the embedded mixture, by its own sampler ---------------------------------------------------------------------


def test_unbiased_on_the_live_engine() -> None:
    """One Gaussian: the sampler's chain is linear, so its own law is in closed form, discretisation and all."""
    denoiser = MixtureDenoiser(torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([0.5]), torch.ones(1), steps=8)
    kernel = Ddim(denoiser.path, denoiser.times)
    a = torch.tensor([1.0, 0.5, -0.5]).double()
    reward = FunctionReward(lambda images, prompts: torch.logit(images.double())[..., 0, 0] @ a, "tilt")
    mu, var = torch.zeros(3).double(), 1.0
    denoiser.encode([""])
    for k in range(8):
        step, zero = torch.tensor([k]), torch.tensor([0])

        def moved(x: Any, key: int, step: Any = step, zero: Any = zero, k: int = k) -> Any:
            return kernel.step(x, denoiser.predict(x, step, zero), step, [(0, key, k)], [None])[0][0]

        at0, at1, other = (moved(torch.full((1, 3), v).double(), key) for v, key in ((0.0, 0), (1.0, 0), (0.0, 1)))
        xi, xi2 = noise([(0, 0, k), (0, 1, k)], torch.zeros(2, 3).double())
        slope, gain = float((at1 - at0)[0]), float(((other - at0) / (xi2 - xi))[0])
        mu, var = slope * mu + at0 - gain * xi, slope**2 * var + gain**2
    lam, runs = 1.0, 80
    truth = float(torch.exp(lam * (a @ mu) + lam**2 * var * (a @ a) / 2))
    for potential, threshold in (("max", 0.5), ("difference", 1.0), ("current", 0.7)):
        found = []
        for run in range(runs):
            algorithm = Watched(6, lam, potential, "increase", ess=threshold, every=2, first=1.0, last=0.0)
            search([""], algorithm, LiveEngine(denoiser, [reward], EngineOptions(64), kernel=kernel), seed=1000 * run)
            found.append(np.exp(algorithm.seen[0][0].log_z))
        off = (np.mean(found) - truth) / (np.std(found, ddof=1) / np.sqrt(runs))
        print(f"z = {off:+.2f}", potential, threshold, "live")
        assert abs(off) < 4


def test_copies_come_apart_and_deterministic_samplers_are_refused(engine: Any) -> None:
    live = engine()
    greedy = SMC(6, 1e6, "current", "constant", ess=1.0, every=2, first=1.0, last=0.0)
    with pytest.raises(ValueError, match=r"smc .*deterministic"):
        search(["a"], greedy, live)
    noisy = LiveEngine(
        live.denoiser, live.rewards, EngineOptions(4), kernel=Ddim(live.denoiser.path, live.denoiser.times)
    )
    (result,) = search(["a"], greedy, noisy, keep=6)
    assert len(set(result.trace[-1]["parents"])) == 1
    assert len(torch.unique(torch.stack([c.image for c in result.images]), dim=0)) == 6
    assert result.spent.nfe == 6 * 8 == live.denoiser.calls


# --- moves --------------------------------------------------------------------------------------------------------


class Failing(Chain):
    """Scores are missing by rule."""

    def __init__(self, missing: Any) -> None:
        super().__init__(linear)
        self.missing = missing

    def submit(self, job: int, plan: Plan) -> None:
        super().submit(job, plan)
        self._done[-1].scores[self.missing(plan.uid, plan.rows.stop)] = np.nan  # type: ignore[index]


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", ["increase", "adaptive"])
@pytest.mark.parametrize("rule", ["some", "all at first", "all in the middle", "all but one", "at the end", "always"])
def test_missing_scores_weigh_nothing(potential: str, temper: str, rule: str) -> None:
    missing = {
        "some": lambda uids, stop: uids % 3 == 1,
        "all at first": lambda uids, stop: stop == 0,
        "all in the middle": lambda uids, stop: stop == 2,
        "all but one": lambda uids, stop: (uids != 4) & (stop == 1),
        "at the end": lambda uids, stop: stop == 6,
        "always": lambda uids, stop: stop >= 0,
    }[rule]
    algorithm = Watched(8, 1.0, potential, temper, **everywhere)
    (result,) = search(["a"], algorithm, Failing(missing), utility=first_reward, keep=2)
    state, _ = algorithm.seen[0]
    assert result.images
    assert not np.isnan(state.logw).any()
    gone = missing(state.uids, np.full(len(state.uids), 6))
    assert (state.logw[gone] == -np.inf).all()
    assert np.isfinite(state.logw[~gone]).all()
    for move in result.trace[1:]:
        bad = missing(np.array(move["parents"]), np.array(move["start"]))
        assert not bad.any() or bad.all()
    if rule == "all but one":
        assert set(result.trace[2]["parents"]) == {4}


def test_the_funnel_narrows_and_fits_its_budget() -> None:
    algorithm = Watched(40, 1.0, shrink=0.25, **everywhere)
    (result,) = search(["a"], algorithm, Chain(linear), utility=first_reward)
    sizes = [len(m["uids"]) for m in result.trace]
    assert sizes == [round(40 * 0.25 ** (j / 5)) for j in range(6)]
    assert sizes[-1] == 10
    (result,) = search(["a"], make_algorithm("funnel"), Chain(linear), "240nfe", utility=first_reward, keep=3)
    assert 220 <= result.spent.nfe <= 240
    assert len(result.trace[0]["uids"]) > 40 > len(result.trace[-1]["uids"]) >= 3


@pytest.mark.parametrize("nfe", range(6, 60, 3))
def test_a_cut_move_goes_on_with_what_there_is(nfe: int) -> None:
    algorithm = Watched(8, 1.0, "max", "increase", ess=0.6, **everywhere)
    (result,) = search(["a"], algorithm, Chain(linear), f"{nfe}nfe", utility=first_reward)
    assert result.images
    assert result.spent.nfe <= nfe
    for state, _ in algorithm.seen:
        assert len(state.uids) == len(state.logw) == len(state.total)
        assert (result.particles.step[state.uids] == 6).all()


def test_checks_are_where_the_published_code_has_them() -> None:
    steps = np.arange(101)  # SDXL's grid of 100 steps: scaled linear betas, leading spacing
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[np.clip(1000 - 10 * steps, 0, 999)]
    sigma, alpha = np.sqrt(1 - alpha), np.sqrt(alpha)
    grid = Grid((*(sigma / (alpha + sigma))[:100].tolist(), 0.0))
    assert make_algorithm("fk-steering").init(Task(grid)).steps == (20, 40, 60, 80, 100)
    assert SMC().init(Task(Grid((1.0, 0.0)))).steps == (1,)
    assert SMC(**everywhere).init(Task(GRID)).steps == (0, 1, 2, 3, 4, 6)
    assert make_algorithm("fk-steering") == SMC(4, 10.0, "max", "constant", resampler="multinomial")


@dataclass(frozen=True)
class Adopting(Watched):
    """Looks at noises, and goes on from the best three."""

    def step(self, s: Any, particles: Any, rng: Any) -> Any:
        if not len(particles):
            return fresh(9, 0), s
        if s.at < 0:
            s = self.adopt(self.init(Task(GRID)), particles.ranked()[:3], particles)
        return super().step(s, particles, rng)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_adopted_particles_are_gone_on_from(n: int) -> None:
    algorithm = Adopting(n, 1.0, **everywhere)
    (result,) = search(["a"], algorithm, Chain(linear), utility=first_reward)
    best = np.argsort(-result.particles.scores[:9, 0, 0])[:3]
    started = result.trace[1]
    assert started["parents"] == np.resize(best, n).tolist()
    assert set(started["drop"]) == set(range(9)) - set(started["parents"])
    assert result.spent.nfe == 9 + 6 * n - n  # children share the evaluation at noise
    assert SMC().adopt(SMC().init(Task(GRID)), best, result.particles).n == 3


@pytest.mark.parametrize(("lam", "left"), [(1e-9, 10), (1e9, 1)])
def test_without_noise_resampling_is_pruning(lam: float, left: int) -> None:
    """Equal weights keep everybody, uneven ones the best, once; checks are where they are asked for."""
    grid = Grid(tuple(np.linspace(1, 0, 36)))
    algorithm = SMC(10, lam=lam, ess=1.0, steps=(6, 13, 20, 27), unique=True)
    result = search([""], algorithm, DryEngine(grid, ("r",), offers=frozenset()))[0]
    assert result.spent.nfe == 10 * 7 + left * 28
    assert [move["stop"][0] for move in result.trace] == [6, 13, 20, 27, 35]
    assert all(len(set(move["parents"])) == left for move in result.trace[1:])


@pytest.mark.parametrize("steps", [(6, 6), (8, 7), (34,), (40,)])
def test_checks_that_do_not_fit(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must rise and be below 34"):
        SMC(4, steps=steps).init(Task(Grid(tuple(np.linspace(1, 0, 36))), 1))
