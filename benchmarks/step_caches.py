"""Ways from noises to images that leave out a part of the model's evaluations, on the embedded
model (caches.py)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

from ttsnap.pipelines import load
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.sampling.kernels import Ode, Prediction
from ttsnap.sampling.rng import seeded


class Sampler:
    """The model's own call, and ways around its evaluations."""

    def __init__(self, dtype: torch.dtype, steps: int) -> None:
        self.dtype, self.call = (
            dtype,
            {"num_inference_steps": steps, "guidance_scale": 4.0, "max_sequence_length": 1},
        )
        self.model = load(dtype=dtype).denoiser(**self.call)
        net = self.model.net
        # this one's class is without, though its blocks do
        net.__class__ = type("Cached", (CacheMixin, type(net)), {})
        self.steps, self.ratios = steps, list[float]()
        use_drafter(self.model, "embedded")

    def own(self, x: Tensor, cond: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """The model's own steps: latents (N, ...) of images of noises x, of prompts cond (N,).
        seen: gets estimates."""
        for k in range(self.steps):
            at = torch.full([len(x)], k)
            prediction = self.model.predict(x, at, cond)
            if seen is not None:
                seen.append(prediction.x0)
            x = self.stepped(x, prediction.out, k)
        return x

    def stepped(self, x: Tensor, out: Tensor, k: int) -> Tensor:
        at = torch.full([len(x)], k)
        moved, _ = self.model.kernel.step(x, self.prediction(x, out, k), at, [], [])
        return moved

    def prediction(self, x: Tensor, out: Tensor, k: int) -> Prediction:
        return Prediction(out, self.model.schedule.x0(x, out, torch.full([len(x)], k)))

    def guided(self, x: Tensor, k: int, cond: Tensor, **changes: Any) -> Any:
        """Outputs at step k, with another guidance."""
        model, at = copy.copy(self.model), torch.full([len(x)], k)
        model.guidance = replace(model.guidance, **changes)
        return model.guided(model.schedule.scaled(x, at), model.schedule.timesteps[at], at, cond)

    # --- ways -------------------------------------------------------------------------------------

    def way(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """(noises (N, ...), prompts (N,)) -> latents of images, by this way."""
        kind, *numbers = name.split(":")
        made: Callable[..., Tensor] = getattr(self, "_" + kind.replace("-", "_"))
        return partial(made, *map(float, numbers))

    def _rollout(self, calls: float, x: Tensor, cond: Tensor) -> Tensor:
        points = [round(j * self.steps / calls) for j in range(int(calls) + 1)]
        ode = Ode(self.model.path, self.model.times)
        for k, to in itertools.pairwise(points):
            at = torch.full([len(x)], k)
            x = ode.jump(x, self.model.predict(x, at, cond), at, torch.full([len(x)], to))
        return x

    def _dpm(self, calls: float, x: Tensor, cond: Tensor) -> Tensor:
        pipe = copy.copy(self.model.pipe)
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            {"num_train_timesteps": 1000},
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=1.0,
        )
        model = type(self.model)(pipe, **self.call | {"num_inference_steps": int(calls)})
        model.texts = self.model.texts
        state: Any = [model.kernel.init(row, (0, 0), seeded(0)) for row in x]
        for k in range(model.grid.steps):
            at = torch.full([len(x)], k)
            x, state = model.kernel.step(
                x, model.predict(x, at, cond), at, [(0, 0)] * len(x), state
            )
        return x

    def _draft(self, calls: float, x: Tensor, cond: Tensor) -> Tensor:
        assert self.model.drafts is not None
        return self.model.drafts.guess(x, torch.zeros(len(x), dtype=torch.long), cond, int(calls))

    def _reuse(self, every: float, warm: float, x: Tensor, cond: Tensor) -> Tensor:
        return self._taylor(every, warm, x, cond, order=0)

    def _taylor(self, every: float, warm: float, x: Tensor, cond: Tensor, order: int = 1) -> Tensor:
        known: list[tuple[int, Tensor]] = []
        for k in range(self.steps):
            if evaluated(k, every, warm):
                known = [*known[-1:], (k, self.model.predict(x, torch.full([len(x)], k), cond).out)]
                out = known[-1][1]
            else:
                (last, out), (before, older) = known[-1], known[0]
                if order and before < last:
                    out = out + (out - older) * ((k - last) / (last - before))
            x = self.stepped(x, out, k)
        return x

    def _guidance(self, every: float, warm: float, x: Tensor, cond: Tensor) -> Tensor:
        scale, difference = self.model.guidance.scale, torch.zeros(())
        for k in range(self.steps):
            if evaluated(k, every, warm):
                out, conditional = self.guided(x, k, cond), self.guided(x, k, cond, guided=False)
                difference = (out - conditional) / (scale - 1)
            else:
                out = self.guided(x, k, cond, guided=False) + (scale - 1) * difference
            x = self.stepped(x, out, k)
        return x

    def _mag(self, threshold: float, x: Tensor, cond: Tensor) -> Tensor:
        config = diffusers.hooks.MagCacheConfig(
            threshold, retention_ratio=0.1, num_inference_steps=self.steps, mag_ratios=self.ratios
        )
        return self._cached(config, x, cond)

    def calibrate(self, x: Tensor, cond: Tensor) -> None:
        """Find MagCache's ratios of this model, on these noises."""
        with self._cache(
            diffusers.hooks.MagCacheConfig(num_inference_steps=self.steps + 1, calibrate=True)
        ):
            self.own(x, cond)
            for part in self.model.net.modules():
                for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).values():
                    for state in getattr(
                        getattr(hook, "state_manager", None), "_state_cache", {}
                    ).values():
                        self.ratios = list(state.calibration_ratios)

    def _attention(self, every: float, x: Tensor, cond: Tensor) -> Tensor:
        config = diffusers.TaylorSeerCacheConfig(
            cache_interval=int(every), taylor_factors_dtype=torch.float32
        )
        return self._cached(config, x, cond)

    def _pab(self, every: float, x: Tensor, cond: Tensor) -> Tensor:
        config = diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=int(every), current_timestep_callback=lambda: 500
        )
        return self._cached(config, x, cond)

    def _cached(self, config: Any, x: Tensor, cond: Tensor) -> Tensor:
        with self._cache(config):
            return self.own(x, cond)

    @contextmanager
    def _cache(self, config: Any) -> Iterator[None]:
        self.model.net.enable_cache(config)
        try:
            with self.model.net.cache_context("both"):  # one call has both passes
                yield
        finally:
            self.model.net.disable_cache()

    def _first_block_shared(self, threshold: float, x: Tensor, cond: Tensor) -> Tensor:
        return self._first_block(threshold, x, cond, shared=True)

    def _first_block(
        self, threshold: float, x: Tensor, cond: Tensor, shared: bool = False
    ) -> Tensor:
        with first_block_cache(self.model.net.transformer_blocks, threshold, shared=shared):
            return self.own(x, cond)


def evaluated(k: int, every: float, warm: float) -> bool:
    """Whether TaylorSeer evaluates step k."""
    return k < warm or (k - int(warm) - 1) % int(every) == 0


# --- First Block Cache, decided for each row ------------------------------------------------------


class RowCache:
    """What rows (N, ...) of one sequence of calls keep: changes made by the first block, and by the
    rest."""

    def __init__(self, threshold: float, *, shared: bool) -> None:
        self.threshold, self.shared = threshold, shared
        self.first = self.rest = self.now = torch.zeros(0)
        self.todo = torch.zeros(0, dtype=torch.bool)

    def decide(self, change: Tensor) -> None:
        """Which rows the rest is evaluated for, by the change that the first block made."""
        if not len(self.first):
            self.todo, self.first = torch.ones(len(change), dtype=torch.bool), change
            return
        moved, size = ((t.abs().mean((1, 2))) for t in (change - self.first, self.first))
        share = (moved.mean() / size.mean()).expand(len(change)) if self.shared else moved / size
        self.todo = share > self.threshold
        self.first = torch.where(self.todo[:, None, None], change, self.first)


class FirstBlock(ModelHook):
    """The first block runs for all rows; those that go on are handed to the next."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def new_forward(self, module: Any, *, hidden_states: Tensor, **rest: Any) -> tuple[Any, Tensor]:
        texts, out = self.fn_ref.original_forward(hidden_states=hidden_states, **rest)
        self.cache.decide(out - hidden_states)
        self.cache.now = out
        return texts[self.cache.todo], out[self.cache.todo]


class LaterBlock(ModelHook):
    """Runs for the rows that go on. The last one puts all together."""

    def __init__(self, cache: RowCache, *, last: bool) -> None:
        super().__init__()
        self.cache, self.last = cache, last

    def new_forward(
        self, module: Any, *, hidden_states: Tensor, temb: Tensor, **rest: Any
    ) -> tuple[Any, Tensor]:
        cache, texts, out = self.cache, rest["encoder_hidden_states"], hidden_states
        if len(out):
            texts, out = self.fn_ref.original_forward(
                hidden_states=out, temb=temb[cache.todo], **rest
            )
        if not self.last:
            return texts, out
        if not len(cache.rest):
            cache.rest = torch.zeros_like(cache.now)
        cache.rest = cache.rest.clone()
        cache.rest[cache.todo] = out - cache.now[cache.todo]
        return None, cache.now + cache.rest


@contextmanager
def first_block_cache(blocks: Any, threshold: float, *, shared: bool) -> Iterator[None]:
    """diffusers' First Block Cache fails on SD3's last block, which returns no texts, and decides
    for whole batches."""
    cache = RowCache(threshold, shared=shared)
    hooks = [
        FirstBlock(cache),
        *(LaterBlock(cache, last=block is blocks[-1]) for block in blocks[1:]),
    ]
    for block, hook in zip(blocks, hooks, strict=True):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, "rows")
    try:
        yield
    finally:
        for block in blocks:
            block._diffusers_hook.remove_hook("rows", recurse=False)
