"""LiveEngine: carries moves out on a real model, with continuous batching.

Rows of one denoiser batch come from any prompt and any step. When pruning frees a row, another prompt's particle
takes it, so the batch stays full.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.moves import Kind
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price, Rates
from ttsnap.core.protocols import Engine, Reward
from ttsnap.engine.ascent import Ascent
from ttsnap.engine.gradients import Differentiator
from ttsnap.engine.guide import Guide
from ttsnap.engine.scoring import Scorer
from ttsnap.engine.store import Node, Row, stacked
from ttsnap.engine.trial_batches import fit_batches, seconds_of
from ttsnap.profiling.buckets import bucket_of, buckets
from ttsnap.profiling.memory import Gauge, gauge_of
from ttsnap.profiling.meter import Meter
from ttsnap.profiling.stopwatch import Stopwatch
from ttsnap.rewards.registry import make_rewards
from ttsnap.sampling import noises as initial_noises
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.guided_steps import Guidance
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Kernel, Ode, State, forward

logger = logging.getLogger(__name__)
DEFAULT_BATCH = 16
"""The batch size where memory cannot be measured."""


class LiveEngine(Engine):
    """Runs a Denoiser and rewards in full batches.

    batch_size: most particles per denoiser call (with guidance the network sees twice as many rows);
    decode_batch_size: most images per decode and reward call. None: as many as fit into a GPU's memory, measured by a
    few throw-away calls (`probed`), 16 elsewhere. Either is halved when the device runs out of memory.
    padded: fill batches up to a few sizes (buckets.py), so that a compiled network is not compiled for every size.
    preview: decode unfinished estimates with the denoiser's preview VAE. kernel: the pipeline's own by default.
    guidance: steps follow the rewards' gradient (guided_steps.py); gradient_batch_size: most rows of those calls.
    noises: "independent" initial noises, or "orthogonal" or "antithetic" ones (noises.py). keep:
    "latents" and "features", what to hand to listeners beside the decoded estimates; features_block: the transformer
    block whose hidden states those are (rewards that read features name their own).
    `stats` counts what ran.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rewards: Sequence[Reward],
        *,
        kernel: Kernel | None = None,
        batch_size: int | None = None,
        decode_batch_size: int | None = None,
        padded: bool = False,
        preview: bool = False,
        keep: Sequence[str] = (),
        features_block: int | None = None,
        guidance: Guidance | None = None,
        gradient_batch_size: int | None = None,
        noises: str = "independent",
    ) -> None:
        initial_noises.check(noises)
        if any(size is not None and size < 1 for size in (batch_size, decode_batch_size)):
            raise ValueError(f"batch sizes must be at least 1, got {batch_size} and {decode_batch_size}")
        if gradient_batch_size is not None and gradient_batch_size < 1:
            raise ValueError(f"gradient_batch_size must be at least 1, got {gradient_batch_size}")
        self.denoiser, self.rewards, self.grid = denoiser, make_rewards(tuple(rewards)), denoiser.grid
        self.kernel = kernel if kernel is not None else denoiser.kernel
        self.stochastic, self.noises = self.kernel.stochastic, noises
        self._sizes, self.padded, self.probed = (batch_size, decode_batch_size), padded, Cost()
        self.scorer = Scorer(denoiser, self.rewards, self.grid, preview=preview)
        self.reward_names, self.keep = self.scorer.names, tuple(keep)
        self._capture(features_block)
        self.guide = None
        self.gradient_batch_size = gradient_batch_size
        if guidance is not None:
            self.guide = Guide(guidance, self.kernel, denoiser, self.rewards, gradient_batch_size)
            self.probed += self.guide.differentiate.tried
        self.ascent: Ascent | None = None
        self._price: Price | None = None
        self._prompts: list[str] | None = None
        self._rows: list[Row] = []
        self._resting: dict[tuple[int, int], tuple[Node, rng.Key]] = {}
        self._watch = Stopwatch(("denoise", "decode", "reward", "gradient"))
        self._device: torch.device | None = None
        self.stats: dict[str, int] = defaultdict(int)

    def _capture(self, block: int | None) -> None:
        """Ask the denoiser for hidden features where a reward or a listener reads them."""
        if set(self.keep) - {"latents", "features"}:
            raise ValueError(f"keep knows of latents and features, got {self.keep}")
        wanted = {r.features_block for r in self.rewards if r.estimates == "features"}
        wanted |= {block} if "features" in self.keep or block is not None else set()
        if not wanted:
            return
        found, *others = sorted(wanted, key=str)
        if others or found is None:
            raise ValueError(f"features come from one block of the denoiser, got {[found, *others]}")
        self.denoiser.capture(found)

    # --- what it can do and what that costs ---------------------------------------------------------------------

    @property
    def price(self) -> Price:
        """FLOPs per unit, counted once; seconds per unit once `calibrate` has run."""
        if self._price is None:
            predict, decode = self.denoiser.flops()
            reward = float(np.mean([r.flops for r in self.rewards]))
            preview = self.denoiser.preview_flops() if self.scorer.estimates == "preview" else 0.0
            rates, guide = Rates(predict, decode, reward, preview), self.guide
            rates = rates if self._pulls is None else self._pulls.rates(rates)
            guided, depth = None if guide is None else guide.guided, 0 if self.ascent is None else self.ascent.depth
            passes = self.denoiser.passes_per_nfe
            asked = 1 if self._pulls is None else len(self._pulls.rewards)
            self._price = Price(rates, None, passes, self.scorer.estimates, guided, depth, asked)
        return self._price

    def calibrate(self) -> Cost:
        """Measure seconds per unit with a few throw-away calls, for budgets in seconds; returns what they took."""

        def halving(rows: Sequence[Any], call: Callable[[Sequence[Any]], Any]) -> Any:
            return self._halving("batch_size", list(rows), call)

        seconds, spent = seconds_of(self.denoiser, self.scorer, self.batch_size, halving)
        if self._pulls is not None:
            seconds, more = self._pulls.seconds(seconds)
            spent += more
        self._price = replace(self.price, seconds=seconds)
        self.probed += spent
        return spent

    @property
    def offers(self) -> frozenset[Need]:
        """What algorithms may need of it, which depends on whether the sampler draws noise, has a path, no history."""
        simple = self.grid.evals is None and not self.kernel.keeps_history
        found = {Need.MIX, Need.ASCEND}
        if self.stochastic:
            found |= {Need.BRANCH, Need.NEAR} if simple else {Need.BRANCH}
        if simple and self._path is not None:
            found |= {Need.RENOISE, Need.ROLLOUT}
        return frozenset(found)

    @property
    def _path(self) -> Interpolant | None:
        return self.denoiser.path if self.denoiser.has_path else None

    @property
    def batch_size(self) -> int:
        return self._planned()[0]

    @property
    def decode_batch_size(self) -> int:
        return self._planned()[1]

    @property
    def batch_sizes(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "decode_batch_size": self.decode_batch_size}

    def _planned(self) -> tuple[int, int]:
        """The batch sizes, found when first asked for."""
        denoise, decode = self._sizes
        if denoise is None or decode is None:
            gauge = gauge_of(self.denoiser.device)
            if gauge is None:
                denoise = denoise or DEFAULT_BATCH
                decode = decode or denoise
            else:
                denoise, decode = self._measured(gauge, denoise, decode)
            self._sizes = denoise, decode
        return denoise, decode

    def _measured(self, gauge: Gauge, denoise: int | None, decode: int | None) -> tuple[int, int]:
        """Batch sizes that fit into memory; kept with the pipeline, where the denoiser offers to."""
        memo, key = self.denoiser.memo, ("batches", *self.denoiser.setting(), self.reward_names, denoise, decode)
        if key not in memo:
            self.denoiser.encode([""] if self._prompts is None else self._prompts[:1])
            *memo[key], spent = fit_batches(self.denoiser, self.scorer, gauge, denoise, decode)
            self.probed += spent
            if self._prompts is not None:
                self.denoiser.encode(self._prompts)
        found: list[int] = memo[key]
        return found[0], found[1]

    @property
    def capacity(self) -> int:
        """Pending rows that keep it busy."""
        return 2 * self.batch_size

    @property
    def nfe(self) -> int:
        return self.stats["nfe"]

    @property
    def occupancy(self) -> float:
        """Mean share of the denoiser batch that was in use, in (0, 1]."""
        return self.stats["nfe"] / max(1, self.stats["room"])

    def meter(self) -> Meter:
        """Measures memory and energy of a run."""
        return Meter(self.denoiser.device)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds in denoise, decode and reward since `start`."""
        return self._watch.seconds

    def differentiate(self, gradient: Gradient) -> None:
        """Get ready for rows that ascend in initial noise; search() asks for it where an algorithm needs gradients.

        ValueError for a sampler or reward that cannot be differentiated."""
        self.ascent = Ascent(self.denoiser, self.kernel, self.rewards, gradient.depth, gradient.weights)
        self._price = None
        self.probed += self.ascent.differentiate.tried

    @property
    def _pulls(self) -> Differentiator | None:
        """What takes gradients, where something does."""
        source = self.guide if self.guide is not None else self.ascent
        return None if source is None else source.differentiate

    # --- moves ------------------------------------------------------------------------------------------------------

    def check(self, prompts: Sequence[str]) -> None:
        for reward in self.rewards:
            reward.check(prompts)

    def start(self, prompts: Sequence[str], seed: int) -> None:
        self._prompts = list(prompts)
        self._rows, self._resting = [], {}
        self._watch.reset()
        self.check(self._prompts)
        with torch.no_grad():
            self.denoiser.encode(self._prompts)
        if self.guide is not None:
            self.probed += self.guide.prepare(self._prompts)

    def submit(self, job: int, plan: Plan) -> None:
        rows, states = plan.rows, list[tuple[Node, rng.Key]]()
        born = np.full(len(plan), -1)
        climbs: dict[int, tuple[Node, float]] = {}
        for i, (kind, parent, uid) in enumerate(
            zip(rows.kind.tolist(), rows.parent.tolist(), plan.uid.tolist(), strict=True)
        ):
            if kind == Kind.FRESH:
                states.append((Node(job, int(plan.seed[i]), 0), (int(plan.seed[i]), 0)))
                continue
            node, key = self._resting[job, parent]
            # A child draws its own noise from here on; a particle that goes on keeps its source.
            key = key if kind == Kind.CONTINUE else (int(plan.seed[i]), uid + 1)
            if kind == Kind.ASCEND:
                climbs[i] = (node, float(rows.share[i]))
                node = Node(job, node.seed, 0)
            elif kind in (Kind.RENOISE, Kind.MIX):
                node = self._restarted(node, int(rows.start[i]), float(rows.share[i]), key)
            elif kind != Kind.CONTINUE:
                born[i] = node.at
            states.append((node, key))
        for i, (uid, (node, key)) in enumerate(zip(plan.uid.tolist(), states, strict=True)):
            self._resting.pop((job, uid), None)
            if node.prediction is None and node.step(self.grid)[0] == rows.stop[i] and not rows.score[i]:
                # Siblings may use this node's evaluation in this move; this row pays for its own later (pricing.py).
                node = node.unpaid()
            stop, score, near = int(rows.stop[i]), bool(rows.score[i]), self._near(job, plan, i)
            row = Row(job, uid, key, node, stop, self.grid, score, plan.look, int(born[i]), near)
            row.climbs = climbs.get(i)
            self._rows.append(row)
        if self.guide is not None:
            self.guide.mark(self._rows[len(self._rows) - len(plan) :])

    def _near(self, job: int, plan: Plan, i: int) -> tuple[rng.Source, float] | None:
        """The step noise that row i of a plan is near, and its share; None for a plain row."""
        if plan.near[i] < 0:
            return None
        source = self._resting[job, int(plan.near[i])][0].noise
        if source is None:
            raise ValueError(f"particle {plan.near[i]} was not made by one step from where {plan.rows.parent[i]} is")
        return source, float(plan.rows.share[i])

    @torch.no_grad()
    def _restarted(self, node: Node, start: int, mix: float, key: rng.Key) -> Node:
        """A new particle from another one's state, at an earlier step: from mixed initial noise at 0, else by noising.

        Noise belongs to the key and to a step beyond the last, at which no sampler draws.
        """
        if start > 0:
            t, s = self.denoiser.times[[int(node.at)]], self.denoiser.times[[start]]
            x = forward(self.denoiser.path, node.x[None], t, s, [(*key, self.grid.nfe)])[0]
            return Node(node.job, node.seed, start, x, origin=node.origin)
        key = (*key, self.grid.nfe)
        latest, origin = rng.generator(key), (*node.origin, (mix, key))
        x = mix * self._noise(node) + math.sqrt(1 - mix * mix) * self.denoiser.init_latents([latest])[0]
        return Node(node.job, node.seed, 0, x, self.kernel.init(key[:-1], latest), origin)

    def _noise(self, node: Node) -> Tensor:
        """The initial noise that this node came from."""
        x = initial_noises.initial(self.noises, [node.seed], self.denoiser.init_latents)[0][0]
        for share, source in node.origin:
            more = source if isinstance(source, Tensor) else self.denoiser.init_latents([rng.generator(source)])[0]
            x = share * x + math.sqrt(1 - share * share) * more
        return x

    def _climb(self) -> None:
        """Give rows that ascend the noise they start from. A finished particle's gradient is taken once."""
        climbing = [row for row in self._rows if row.climbs is not None]
        if self.ascent is None or not climbing:
            return
        ascent, parents = self.ascent, {id(row.climbs[0]): row.climbs[0] for row in climbing if row.climbs}

        def call(batch: list[Node]) -> None:
            upward, cost = ascent(batch, torch.stack([self._noise(node) for node in batch]), self._prompts or [])
            for node, direction in zip(batch, upward, strict=True):
                node.upward = direction
            self._count(cost, ascent.depth)

        while left := [node for node in parents.values() if node.upward is None]:
            with self._watch("gradient", self._device):
                self._halving("batch_size", left[: self.gradient_batch_size or self.batch_size], call)
        for row in climbing:
            if row.climbs is not None:
                (node, mix), row.climbs = row.climbs, None
                row.node.origin = (*node.origin, (mix, node.upward))
                row.node.latent = self._noise(row.node)

    def pending(self) -> int:
        return len(self._rows)

    def drop(self, job: int, uids: Sequence[int]) -> None:
        for uid in uids:
            self._resting.pop((job, uid), None)

    def cancel(self, job: int) -> Outcome:
        mine = [row for row in self._rows if row.job == job]
        self._rows = [row for row in self._rows if row.job != job]
        return self._rest(job, mine)

    @torch.no_grad()
    def tick(self) -> list[Outcome]:
        self._climb()
        self._advance()
        self._predict()
        self._advance()
        going = [row for row in self._rows if not row.done]
        ready = [row for row in self._rows if row.done and not row.score]
        scored = [row for row in self._rows if row.done and row.score]
        done = [self._rest(job, [ready[i] for i in rows]) for job, rows in _by_job(ready).items()]
        # Decode full batches; the rest only when the denoiser has nothing left to do meanwhile.
        full = len(scored) // self.decode_batch_size * self.decode_batch_size if going else len(scored)
        if going and self.denoiser.offloaded:
            full = 0  # every change between denoiser and decoder moves one of them
        try:
            while full:
                size = min(full, self.decode_batch_size)
                done += self._halving("decode_batch_size", scored[:size], self._score)
                scored, full = scored[min(size, self.decode_batch_size) :], full - min(size, self.decode_batch_size)
        finally:
            self._rows = scored + going
        return done

    def _halving(self, size: str, batch: list[Any], call: Callable[[list[Any]], Any]) -> Any:
        """call(batch), on the first half of it and with that batch size from now on as often as memory runs out."""
        while True:
            try:
                return call(batch[: getattr(self, size)])
            except torch.OutOfMemoryError:
                half = min(len(batch), getattr(self, size)) // 2
                if half < 1:
                    raise
                denoise, decode = self._planned()
                self._sizes = (half, decode) if size == "batch_size" else (denoise, half)
                logger.warning("out of memory: %s is %d from now on", size, half)
            # Outside the handler, whose traceback would hold on to what was allocated.
            self.stats["out_of_memory"] += 1
            torch.accelerator.empty_cache() if torch.accelerator.is_available() else None

    def _predict(self) -> None:
        """One denoiser call on the first rows that need it."""
        nodes: dict[int, Node] = {}
        for row in self._rows:
            if len(nodes) == self.batch_size:
                break
            node = row.waiting
            if node is not None:
                nodes[id(node)] = node
        if self.guide is not None:
            self._pull(nodes)
        if nodes:
            with self._watch("denoise", self._device):
                self._halving("batch_size", list(nodes.values()), self._evaluate)

    def _pull(self, nodes: dict[int, Node]) -> None:
        """Take those of these nodes out that need a gradient, and get it, with the evaluation where that is new."""
        guide: Any = self.guide
        wanting = {id(row.node): row.node for row in self._rows if row.pulls and id(row.node) in nodes}
        for key in wanting:
            nodes.pop(key)

        def call(batch: list[Node]) -> None:
            self._draw([node for node in batch if node.latent is None])
            cost = guide.pull(batch, self._prompts or [])
            self._count(cost, int(cost.nfe > 0))

        left = list(wanting.values())
        while left:
            size = min(len(left), guide.batch_size or self.batch_size, self.batch_size)
            with self._watch("gradient", self._device):
                self._halving("batch_size", left[:size], call)
            left = [node for node in left if node.gradient is None]

    def _evaluate(self, batch: list[Node]) -> None:
        self._draw([node for node in batch if node.latent is None])
        rows = batch
        if self.padded:
            rows = batch + batch[-1:] * (bucket_of(len(batch), buckets(self.batch_size)) - len(batch))
        x = torch.stack([node.x for node in rows])
        at, cond = torch.tensor([node.at for node in rows]), torch.tensor([node.job for node in rows])
        prediction = self.denoiser.predict(x, at, cond)
        for i, node in enumerate(batch):
            node.take(prediction, i)
        self._count(Cost(len(batch)))

    def _count(self, cost: Cost, calls: int = 1) -> None:
        """What ran, in so many denoiser calls."""
        self.stats["batches"] += calls
        self.stats["room"] += calls * self.batch_size
        for name, amount in cost.named().items():
            self.stats[name] += amount

    def _draw(self, fresh: list[Node]) -> None:
        """Initial noise of seeds that the network is to see now."""
        if not fresh:
            return
        seeds = [node.seed for node in fresh]
        drawn, generators = initial_noises.initial(self.noises, seeds, self.denoiser.init_latents)
        self._device = drawn.device
        for node, noise, generator in zip(fresh, drawn, generators, strict=True):
            node.latent = noise
            node.memory = self.kernel.init((node.seed, 0), generator)

    def _advance(self) -> None:
        """Move every row whose prediction is there to its next point: no network call."""
        ready = [row for row in self._rows if row.node.prediction is not None and row.node.at < row.end]
        moving = [row for row in ready if not row.pulls]
        if moving:
            x, prediction, k = stacked([row.node for row in moving])
            keys = [row.noise for row in moving]
            depth = 0 if self.ascent is None else self.ascent.depth
            trails = [(*row.node.trail, row.node.x)[-depth:] if depth else () for row in moving]
            memory: Sequence[State] = [row.node.memory for row in moving]
            ratios: list[Any] = [0.0] * len(moving)
            if self.guide is None:
                moved, memory = self.kernel.step(x, prediction, k, keys, memory)
            else:
                moved, ratios = self.guide.step([row.node for row in moving], x, prediction, k, keys)
            new = zip(moving, moved, memory, keys, ratios, trails, strict=True)
            for row, latent, kept, source, ratio, trail in new:
                at = row.node.at
                row.node = Node(row.job, row.node.seed, at + 1, latent, kept, row.node.origin)
                row.node.noise, row.node.log_ratio = source if at == row.born else None, ratio
                row.node.trail = trail
        drafting = [row for row in self._rows if row.there and row.ahead and row.judged.prediction is not None]
        if drafting:
            x, prediction, k = stacked([row.judged for row in drafting])
            points = [row.ahead.pop(0) for row in drafting]
            moved = Ode(self.denoiser.path, self.denoiser.times).jump(x, prediction, k, torch.tensor(points))
            for row, latent, point in zip(drafting, moved, points, strict=True):
                row.probe = Node(row.job, row.node.seed, point, latent)

    def _score(self, batch: list[Row]) -> list[Outcome]:
        found = self.scorer(batch, [(self._prompts or [])[row.job] for row in batch], self._watch)
        self._count(found.cost, 0)
        pairs = zip(batch, found.latents, strict=True)
        kept = [self._kept(row, latent) for row, latent in pairs] if self.keep else []
        return [
            self._rest(
                job,
                [batch[i] for i in rows],
                found.scores[rows],
                [found.images[i] for i in rows],
                [found.errors[i] for i in rows],
                [kept[i] for i in rows] if kept else (),
            )
            for job, rows in _by_job(batch).items()
        ]

    def _kept(self, row: Row, latent: Tensor) -> dict[str, Tensor]:
        """What listeners get of one row beside its image. A finished image has no features: no call was made there."""
        found = {"latent": latent} if "latents" in self.keep else {}
        if "features" in self.keep and row.judged.features is not None:
            found["features"] = row.judged.features
        return found

    def _rest(
        self,
        job: int,
        rows: list[Row],
        scores: Any = None,
        images: list[Tensor] | None = None,
        errors: Sequence[str | None] = (),
        kept: Sequence[dict[str, Tensor]] = (),
    ) -> Outcome:
        """These rows stop here; their particles keep their state, ready for another move."""
        for row in rows:
            self._resting[job, row.uid] = row.node, row.key
        where = [row.node.step(self.grid) for row in rows]
        return Outcome(
            job,
            np.array([row.uid for row in rows], int),
            np.array([step for step, _ in where], int),
            np.array([paid for _, paid in where], bool),
            scores,
            images,
            errors,
            kept,
            np.array([row.look_nfe for row in rows], int),
            *(() if self.guide is None else self.guide.told([row.node for row in rows])),
        )


def _by_job(rows: list[Row]) -> dict[int, list[int]]:
    """Indices of rows by job, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        found[row.job].append(i)
    return found
