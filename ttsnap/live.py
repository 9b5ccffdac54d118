"""LiveEngine: carries moves out on a real model, with continuous batching.

Rows of one denoiser batch come from any prompt and any step. When pruning frees a row, another prompt's particle
takes it, so the batch stays full.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ttsnap import rng
from ttsnap.buckets import bucket_of, buckets
from ttsnap.budget import Price, Rates
from ttsnap.interpolants import Interpolant
from ttsnap.memory import Gauge, fit_rows, gauge_of
from ttsnap.meter import Meter
from ttsnap.moves import mixes
from ttsnap.samplers import Kernel, Prediction, RememberingKernel, forward
from ttsnap.stopwatch import Stopwatch
from ttsnap.types import Cost, Grid, IntArray, Move, Outcome, Reward

logger = logging.getLogger(__name__)
_NOT_FINITE = "the latent or its image is nan or inf; in half precision, try bfloat16 or a VAE in float32"
DEFAULT_BATCH, MOST = 16, 64
"""The batch size where memory cannot be measured, and the most that is taken where it can: more gains no speed."""


class Denoiser(Protocol):
    """One pipeline family, set up for one call: fixed size, steps and guidance."""

    device: torch.device
    grid: Grid
    path: Interpolant
    times: Tensor
    """(K+1,) float64, the path's times at the grid points."""
    kernel: Kernel
    """The pipeline's own scheduler."""
    passes_per_nfe: int

    def encode(self, prompts: Sequence[str]) -> None:
        """Encode these prompts; `cond` below indexes them."""

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Initial noise (N, ...), row i as stock diffusers draws it from generators[i]."""

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        """One guided evaluation of x (N, ...); every row has its own step (N,) and prompt (N,), long on the CPU.

        Where a grid step takes several evaluations, `step` counts evaluations (Grid.calls).
        """

    def decode(self, x0: Tensor) -> Tensor:
        """(N, ...) -> images (N, 3, H, W) float32 in [0, 1]."""

    def flops(self) -> tuple[float, float]:
        """FLOPs of one guided evaluation and of one decode, per particle."""


@runtime_checkable
class Previewer(Protocol):
    """A Denoiser that can also decode cheaply."""

    def preview(self, x0: Tensor) -> Tensor:
        """As Denoiser.decode, by a small VAE."""

    def preview_flops(self) -> float:
        """FLOPs of one preview."""


class _Node:
    """A latent after `at` evaluations, with its prediction once paid. Children of a particle share it until they move.

    Initial noise is drawn from `seed` only when the network is to see it: seeds in waiting take no memory. `origin`
    tells how it was mixed since, (mix, key of the fresh noise) each time. `memory` is what a RememberingKernel keeps.
    """

    __slots__ = ("at", "features", "job", "latent", "memory", "origin", "prediction", "seed")

    def __init__(
        self,
        job: int,
        seed: int,
        at: int,
        latent: Tensor | None = None,
        memory: Any = None,
        origin: tuple[tuple[float, rng.Key], ...] = (),
    ) -> None:
        self.job, self.seed, self.at, self.latent, self.memory, self.origin = job, seed, at, latent, memory, origin
        self.prediction: Prediction | None = None
        self.features: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The latent; set once the network has seen it."""
        if self.latent is None:
            raise RuntimeError(f"the noise of seed {self.seed} was not drawn yet")
        return self.latent


class _Row:
    """One row of a move under way. `key` (seed, branch) is the particle's source of sampling noise.

    `stop` is the step it goes to, `end` the evaluations that have brought it there.
    """

    __slots__ = ("end", "job", "key", "last", "node", "score", "stop", "uid")

    def __init__(self, job: int, uid: int, key: rng.Key, node: _Node, stop: int, grid: Grid, score: bool) -> None:
        self.job, self.uid, self.key, self.node, self.stop, self.score = job, uid, key, node, stop, score
        self.end, self.last = int(grid.calls[stop]), stop == grid.steps

    @property
    def needs_network(self) -> bool:
        ahead = self.node.at < self.end or (self.score and not self.last)
        return ahead and self.node.prediction is None


class LiveEngine:
    """Runs a Denoiser and rewards in full batches.

    batch_size: most particles per denoiser call (with guidance the network sees twice as many rows);
    decode_batch_size: most images per decode and reward call. None: as many as fit into a GPU's memory, measured by a
    few throw-away calls (`probed`), 16 elsewhere. Either is halved when the device runs out of memory.
    padded: fill batches up to a few sizes (buckets.py), so that a compiled network is not compiled for every size.
    preview: decode unfinished estimates with the denoiser's preview VAE. kernel: the pipeline's own by default. keep:
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
    ) -> None:
        if any(size is not None and size < 1 for size in (batch_size, decode_batch_size)):
            raise ValueError(f"batch sizes must be at least 1, got {batch_size} and {decode_batch_size}")
        names = tuple(r.name for r in rewards)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"need at least one reward, each with a name of its own, got {names}")
        self.denoiser, self.rewards, self.reward_names = denoiser, tuple(rewards), names
        self.kernel = kernel if kernel is not None else denoiser.kernel
        self.stochastic, self.grid = self.kernel.stochastic, denoiser.grid
        self._sizes, self.padded, self.probed = (batch_size, decode_batch_size), padded, Cost()
        if preview and not isinstance(denoiser, Previewer):
            raise ValueError(f"{type(denoiser).__name__} has no preview VAE; set pipe.preview_vae")
        self.preview = preview
        self.keep = tuple(keep)
        self._spaces = tuple(getattr(r, "estimates", "pixels") for r in rewards)
        self._capture(features_block)
        self._price: Price | None = None
        self._prompts: list[str] | None = None
        self._rows: list[_Row] = []
        self._resting: dict[tuple[int, int], tuple[_Node, rng.Key]] = {}
        self._watch = Stopwatch(("denoise", "decode", "reward"))
        self._device: torch.device | None = None
        self.stats: dict[str, int] = defaultdict(int)

    @property
    def price(self) -> Price:
        """FLOPs per unit, counted once; seconds per unit once `calibrate` has run."""
        if self._price is None:
            predict, decode = self.denoiser.flops()
            reward = float(np.mean([getattr(r, "flops", 0.0) for r in self.rewards]))
            preview = self.denoiser.preview_flops() if isinstance(self.denoiser, Previewer) and self.preview else 0.0
            # Whoever wants the images kept pays for their decodes, too.
            estimates = "nothing" if "pixels" not in self._spaces else "preview" if self.preview else "decode"
            rates = Rates(predict, decode, reward, preview=preview)
            self._price = Price(rates, None, self.denoiser.passes_per_nfe, estimates)
        return self._price

    @property
    def batch_size(self) -> int:
        return self._planned()[0]

    @property
    def decode_batch_size(self) -> int:
        return self._planned()[1]

    def _planned(self) -> tuple[int, int]:
        """The batch sizes, found when first asked for."""
        denoise, decode = self._sizes
        if denoise is not None and decode is not None:
            return denoise, decode
        gauge = gauge_of(self.denoiser.device)
        if gauge is None:
            denoise = denoise or DEFAULT_BATCH
            self._sizes = denoise, decode or denoise
            return denoise, decode or denoise
        found = self._fit(gauge, denoise, decode)
        self._sizes = found
        return found

    @torch.no_grad()
    def _fit(self, gauge: Gauge, denoise: int | None, decode: int | None) -> tuple[int, int]:
        """Measure what rows take, with a prompt of no matter what."""
        self.denoiser.encode([""] if self._prompts is None else self._prompts[:1])

        def noise(n: int) -> Tensor:
            return self.denoiser.init_latents([rng.seeded(i) for i in range(n)])

        def predict(n: int) -> None:
            self.denoiser.predict(noise(n), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))

        def judge(n: int) -> None:
            images = self.denoiser.decode(noise(n))
            for reward in self.rewards:
                score_images(reward, images, [""] * n, torch.zeros(n, device=images.device))

        if denoise is None:
            denoise, rows = fit_rows(predict, gauge, MOST)
            self.probed += Cost(rows)
        if decode is None:
            decode, rows = fit_rows(judge, gauge, denoise)
            self.probed += Cost(0, rows, rows * len(self.rewards))
        if self._prompts is not None:
            self.denoiser.encode(self._prompts)
        return denoise, decode

    @property
    def capacity(self) -> int:
        """Pending rows that keep it busy."""
        return 2 * self.batch_size

    def _capture(self, block: int | None) -> None:
        """Ask the denoiser for hidden features where a reward or a listener reads them."""
        if set(self.keep) - {"latents", "features"} or set(self._spaces) - {"pixels", "latents", "features"}:
            raise ValueError(f"known are pixels, latents and features, got {self.keep} and {self._spaces}")
        wanted = {r.features_block for r, space in zip(self.rewards, self._spaces, strict=True) if space == "features"}  # type: ignore[attr-defined]
        wanted |= {block} if "features" in self.keep or block is not None else set()
        if not wanted:
            return
        if len(wanted) > 1 or None in wanted:
            raise ValueError(f"features come from one block of the denoiser, got {sorted(wanted, key=str)}")
        if not hasattr(self.denoiser, "capture"):
            raise ValueError(f"{type(self.denoiser).__name__} cannot hand out hidden features; use pixels or latents")
        self.denoiser.capture(wanted.pop())

    @property
    def nfe(self) -> int:
        return self.stats["nfe"]

    def meter(self) -> Meter:
        """Measures memory and energy of a run."""
        return Meter(self.denoiser.device)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds in denoise, decode and reward since `start`."""
        return self._watch.seconds

    @property
    def occupancy(self) -> float:
        """Mean share of the denoiser batch that was in use, in (0, 1]."""
        return self.stats["nfe"] / max(1, self.stats["room"])

    def start(self, prompts: Sequence[str], seed: int) -> None:
        self._prompts = list(prompts)
        self._rows, self._resting = [], {}
        self._watch.reset()
        for reward in self.rewards:
            if hasattr(reward, "check"):
                reward.check(self._prompts)
        with torch.no_grad():
            self.denoiser.encode(self._prompts)

    def submit(self, job: int, uids: IntArray, seeds: IntArray, move: Move) -> None:
        new = [i for i, parent in enumerate(move.parent.tolist()) if parent < 0]
        states: dict[int, tuple[_Node, rng.Key]] = {}
        for i in new:
            states[i] = _Node(job, int(seeds[i]), 0), (int(seeds[i]), 0)
        mixed = mixes(move)
        for i, (parent, uid) in enumerate(zip(move.parent.tolist(), uids.tolist(), strict=True)):
            if parent >= 0:
                node, key = self._resting[job, parent]
                # A child draws its own noise from here on; a particle that goes on keeps its source.
                key = key if uid == parent else (int(seeds[i]), uid + 1)
                if mixed[i] or move.start[i] != self._step(node)[0]:
                    node = self._restarted(node, int(move.start[i]), float(move.mix[i]), key)
                states[i] = node, key
        for i, uid in enumerate(uids.tolist()):
            self._resting.pop((job, uid), None)
            node, key = states[i]
            if node.prediction is None and self._step(node)[0] == move.stop[i] and not move.score[i]:
                # Siblings may use this node's evaluation in this move; this row pays for its own later (price_move).
                node = _Node(job, node.seed, node.at, node.latent, node.memory, node.origin)
            self._rows.append(_Row(job, uid, key, node, int(move.stop[i]), self.grid, bool(move.score[i])))

    @property
    def renoises(self) -> bool:
        """Whether the sampler has a path along which a latent can be noised, and keeps no history."""
        path = getattr(self.denoiser, "path", None)
        return path is not None and self.grid.evals is None and not isinstance(self.kernel, RememberingKernel)

    @torch.no_grad()
    def _restarted(self, node: _Node, start: int, mix: float, key: rng.Key) -> _Node:
        """A new particle from another one's state, at an earlier step: from mixed initial noise at 0, else by noising.

        Noise belongs to the key and to a step beyond the last, at which no sampler draws.
        """
        if start > 0:
            t, s = self.denoiser.times[[int(node.at)]], self.denoiser.times[[start]]
            x = forward(self.denoiser.path, node.x[None], t, s, [(*key, self.grid.nfe)])[0]
            return _Node(node.job, node.seed, start, x, origin=node.origin)
        key = (*key, self.grid.nfe)
        latest = rng.generator(key)
        x = self.denoiser.init_latents([rng.seeded(node.seed)])[0]
        for share, source in (*node.origin, (mix, key)):
            generator = latest if source is key else rng.generator(source)
            x = share * x + math.sqrt(1 - share * share) * self.denoiser.init_latents([generator])[0]
        memory = self.kernel.begin(key[:-1], latest) if isinstance(self.kernel, RememberingKernel) else None
        return _Node(node.job, node.seed, 0, x, memory, (*node.origin, (mix, key)))

    def _step(self, node: _Node) -> tuple[int, bool]:
        """The grid step where a node is, and whether an evaluation from there is already paid.

        Between the two stages of a solver's step, that is the step's start with the first evaluation paid.
        """
        step = int(np.searchsorted(self.grid.calls, node.at, side="right")) - 1
        return step, node.prediction is not None or node.at > self.grid.calls[step]

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
        self._advance()
        self._predict()
        self._advance()
        ready, scored, going = [], [], []
        for row in self._rows:
            if row.needs_network or row.node.at < row.end:
                going.append(row)
            elif row.score:
                scored.append(row)
            else:
                ready.append(row)
        done = [self._rest(job, [ready[i] for i in rows]) for job, rows in _by_job(ready).items()]
        # Decode full batches; the rest only when the denoiser has nothing left to do meanwhile.
        full = len(scored) // self.decode_batch_size * self.decode_batch_size if going else len(scored)
        if going and getattr(self.denoiser, "offloaded", False):
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
        nodes: dict[int, _Node] = {}
        for row in self._rows:
            if len(nodes) == self.batch_size:
                break
            if row.needs_network:
                nodes[id(row.node)] = row.node
        if nodes:
            with self._watch("denoise", self._device):
                self._halving("batch_size", list(nodes.values()), self._evaluate)

    def _evaluate(self, batch: list[_Node]) -> None:
        self._draw([node for node in batch if node.latent is None])
        rows = batch
        if self.padded:
            rows = batch + batch[-1:] * (bucket_of(len(batch), buckets(self.batch_size)) - len(batch))
        x = torch.stack([node.x for node in rows])
        at, cond = torch.tensor([node.at for node in rows]), torch.tensor([node.job for node in rows])
        prediction = self.denoiser.predict(x, at, cond)
        for node, out, x0 in zip(batch, prediction.out, prediction.x0, strict=False):
            node.prediction = Prediction(out, x0)
        if prediction.features is not None:
            for node, features in zip(batch, prediction.features, strict=False):
                node.features = features
        self.stats["batches"] += 1
        self.stats["room"] += self.batch_size
        self.stats["nfe"] += len(batch)

    def _draw(self, fresh: list[_Node]) -> None:
        """Initial noise of seeds that the network is to see now."""
        if not fresh:
            return
        generators = [rng.seeded(node.seed) for node in fresh]
        drawn = self.denoiser.init_latents(generators)
        self._device = drawn.device
        for node, noise, generator in zip(fresh, drawn, generators, strict=True):
            node.latent = noise
            if isinstance(self.kernel, RememberingKernel):
                node.memory = self.kernel.begin((node.seed, 0), generator)

    def _advance(self) -> None:
        """Move every row whose prediction is there to its next step: no network call."""
        moving = [row for row in self._rows if row.node.prediction is not None and row.node.at < row.end]
        if not moving:
            return
        predictions = [row.node.prediction for row in moving if row.node.prediction is not None]
        x = torch.stack([row.node.x for row in moving])
        prediction = Prediction(torch.stack([p.out for p in predictions]), torch.stack([p.x0 for p in predictions]))
        k = torch.tensor([row.node.at for row in moving])
        keys = [(*row.key, row.node.at) for row in moving]
        memory: list[Any] = [row.node.memory for row in moving]
        if isinstance(self.kernel, RememberingKernel):
            moved, memory = self.kernel.step_from(x, prediction, k, keys, memory)
        else:
            moved = self.kernel.step(x, prediction, k, keys)
        for row, latent, kept in zip(moving, moved, memory, strict=True):
            row.node = _Node(row.job, row.node.seed, row.node.at + 1, latent, kept, row.node.origin)

    def _score(self, batch: list[_Row]) -> list[Outcome]:
        latents = torch.stack([r.node.x if r.node.prediction is None else r.node.prediction.x0 for r in batch])
        levels = torch.tensor([self.grid.levels[row.stop] for row in batch], device=latents.device)
        prompts = [(self._prompts or [])[row.job] for row in batch]
        last = [i for i, row in enumerate(batch) if row.last]
        early = [i for i, row in enumerate(batch) if not row.last]
        previewed = early if self.price.estimates == "preview" else []
        decoded = list(range(len(batch))) if self.price.estimates == "decode" else last
        images: list[Any] = [None] * len(batch)
        with self._watch("decode", latents.device):
            for i, image in zip(decoded, self.denoiser.decode(latents[decoded]) if decoded else (), strict=True):
                images[i] = image
            for i, image in zip(previewed, self._previews(latents[previewed]) if previewed else (), strict=True):
                images[i] = image
        with self._watch("reward", latents.device):
            columns = [self._column(i, batch, latents, images, prompts, levels) for i in range(len(self.rewards))]
        broken = _broken(latents, images)
        self.stats["decodes"] += len(decoded)
        self.stats["previews"] += len(previewed)
        self.stats["reward_calls"] += len(batch) * len(self.rewards)
        scores = np.stack([column for column, _ in columns], axis=1)
        scores[broken] = np.nan
        causes = {r.name: error for r, (_, error) in zip(self.rewards, columns, strict=True)}
        # Estimates stay on the device for whoever listens; finished images leave it, in one transfer.
        if last:
            for i, image in zip(last, torch.stack([images[i] for i in last]).cpu(), strict=True):
                images[i] = image
        kept = [self._kept(row, latent) for row, latent in zip(batch, latents, strict=True)] if self.keep else []
        return [
            self._rest(
                job,
                [batch[i] for i in rows],
                scores[rows],
                [images[i] for i in rows],
                [_NOT_FINITE if broken[i] else _explain(scores[i], causes) for i in rows],
                [kept[i] for i in rows] if kept else (),
            )
            for job, rows in _by_job(batch).items()
        ]

    def _column(
        self, r: int, batch: list[_Row], latents: Tensor, images: list[Any], prompts: list[str], levels: Tensor
    ) -> tuple[Any, str | None]:
        """Reward r's scores (N,) of these rows, and why some failed: estimates in its own space, the rest decoded."""
        reward, space = self.rewards[r], self._spaces[r]
        ahead = [i for i, row in enumerate(batch) if space != "pixels" and not row.last]
        seen = [i for i in range(len(batch)) if i not in set(ahead)]
        scores, causes = np.full(len(batch), np.nan), []
        for rows in (seen, ahead):
            if not rows:
                continue
            call, x = reward, None
            if rows is seen:
                x = torch.stack([images[i] for i in rows])
            else:
                call = reward.score_estimates  # type: ignore[attr-defined]
                x = latents[rows] if space == "latents" else torch.stack([_features(batch[i]) for i in rows])
            scores[rows], cause = score_images(call, x, [prompts[i] for i in rows], levels[rows], reward.name)
            causes += [cause] if cause else []
        return scores, causes[0] if causes else None

    def _kept(self, row: _Row, latent: Tensor) -> dict[str, Tensor]:
        """What listeners get of one row beside its image. A finished image has no features: no call was made there."""
        found = {"latent": latent} if "latents" in self.keep else {}
        if "features" in self.keep and row.node.features is not None:
            found["features"] = row.node.features
        return found

    def _rest(
        self,
        job: int,
        rows: list[_Row],
        scores: Any = None,
        images: list[Tensor] | None = None,
        errors: Sequence[str | None] = (),
        kept: Sequence[dict[str, Tensor]] = (),
    ) -> Outcome:
        """These rows stop here; their particles keep their state, ready for another move."""
        for row in rows:
            self._resting[job, row.uid] = row.node, row.key
        where = [self._step(row.node) for row in rows]
        return Outcome(
            job,
            np.array([row.uid for row in rows], int),
            np.array([step for step, _ in where], int),
            np.array([paid for _, paid in where], bool),
            scores,
            images,
            errors,
            kept,
        )

    @torch.no_grad()
    def calibrate(self) -> Cost:
        """Measure seconds per unit with a few throw-away calls, for budgets in seconds; returns what they took."""
        self.denoiser.encode([""])

        def timed(call: Any) -> float:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin

        def predict(n: int) -> Any:
            x, zeros = self.denoiser.init_latents([rng.seeded(i) for i in range(n)]), torch.zeros(n, dtype=torch.long)
            return lambda: self.denoiser.predict(x, zeros, zeros).x0.cpu()

        timed(predict(1))
        one = timed(predict(1))
        many = self._halving("batch_size", [0] * self.batch_size, lambda rows: timed(predict(len(rows))))
        nfe = max(many - one, 0.2 * many) / max(1, self.batch_size - 1)
        latent = self.denoiser.init_latents([rng.seeded(0)])
        image = self.denoiser.decode(latent)
        decode = timed(lambda: self.denoiser.decode(latent).cpu())
        preview = timed(lambda: self._previews(latent).cpu()) if self.preview else 0.0
        level = torch.ones(1, device=image.device)
        reward = sum(timed(lambda r=r: score_images(r, image, [""], level)) for r in self.rewards) / len(self.rewards)
        self._price = replace(self.price, seconds=Rates(nfe, decode, reward, max(0.0, one - nfe), preview))
        probed = Cost(self.batch_size + 2, 2, len(self.rewards), int(self.preview))
        self.probed += probed
        return probed

    def _previews(self, latents: Tensor) -> Tensor:
        if not isinstance(self.denoiser, Previewer):
            raise ValueError(f"{type(self.denoiser).__name__} has no preview VAE")
        return self.denoiser.preview(latents)


def _by_job(rows: list[_Row]) -> dict[int, list[int]]:
    """Indices of rows by job, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        found[row.job].append(i)
    return found


def _features(row: _Row) -> Tensor:
    if row.node.features is None:
        raise RuntimeError(f"the denoiser captured no features for particle {row.uid} at step {row.stop}")
    return row.node.features


def score_images(
    reward: Any, images: Tensor, prompts: list[str], levels: Tensor, name: str | None = None
) -> tuple[Any, str | None]:
    """Scores (N,) float64 with nan where the reward failed, and why. A reward is the user's code: it may do anything.

    One broken score must not cost a long search its other images, so an exception marks its whole batch as failed.
    """
    try:
        scores = reward(images, prompts, levels)
        scores = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
        scores = scores.astype(np.float64)
        if scores.shape != (len(prompts),):
            raise ValueError(f"returned shape {scores.shape} for {len(prompts)} images; it must be ({len(prompts)},)")
    except Exception as error:
        name = name or reward.name
        logger.debug("reward %s failed", name, exc_info=True)
        return np.full(len(prompts), np.nan), f"{name}: {type(error).__name__}: {error}"
    scores[np.isinf(scores)] = np.nan
    return scores, None


def _broken(latents: Tensor, images: list[Any]) -> Any:
    """(N,) bool, whether a row's latent or its image holds nan or inf. One transfer."""
    found = ~torch.isfinite(latents).flatten(1).all(1)
    seen = [i for i, image in enumerate(images) if image is not None]
    if seen:
        found[seen] |= ~torch.isfinite(torch.stack([images[i] for i in seen])).flatten(1).all(1)
    return found.cpu().numpy()


def _explain(scores: Any, causes: dict[str, str | None]) -> str | None:
    if not np.isnan(scores).any():
        return None
    known = [cause for cause in causes.values() if cause]
    bad = [name for name, s in zip(causes, scores, strict=True) if np.isnan(s)]
    return "; ".join(known) or f"{', '.join(bad)} returned nan or inf"
