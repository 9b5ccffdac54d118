"""What the denoisers of all families share: the schedule, x0 estimates, hidden features, FLOPs."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from ttsnap.pipelines.convert import convert
from ttsnap.pipelines.memo import Memo
from ttsnap.pipelines.schedule import Schedule

from ttsnap.core.grid import Grid
from ttsnap.profiling.flops import count_flops, on_meta
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import AnyKernel, Prediction
from ttsnap.sampling.rng import seeded

logger = logging.getLogger(__name__)
_TYPICAL = "a red circle and a blue square"


class PipelineDenoiser:
    """A live.Denoiser of one call of a pipeline. A family defines `encode`, `init_latents`, `output` and `pixels`.

    It calls `_use(schedule, guided)` in its constructor, whose arguments are those of the stock call that it honours;
    SearchMixin refuses all others.
    """

    network: ClassVar[str] = "transformer"
    """The attribute of the pipeline that is the denoiser."""
    height: int
    width: int
    grid: Grid
    path: Interpolant
    times: Tensor
    kernel: AnyKernel
    passes_per_nfe: int
    text_length: Hashable = None
    """Tokens of the encoded prompts, or what decides on them, where calls may differ in it: the FLOPs do, too."""
    image_dtype: torch.dtype = torch.float32
    """That of the images which the pipeline's VAE decoded last; `decode` widens them."""

    def __init__(self, pipe: Any) -> None:
        vars(pipe).setdefault("_search_memo", Memo())
        # A copy of the object, not of its parts: this call's scheduler and settings must not show in the user's own.
        self.pipe: Any = copy.copy(pipe)
        self._block: int | None = None
        self._stepped: torch.dtype | None = None

    def _use(self, schedule: Schedule, *, guided: bool) -> None:
        if getattr(getattr(self.pipe, self.network), "is_cache_enabled", False):
            raise ValueError("search cannot use a denoiser with a cache, whose rows change; call its disable_cache()")
        self.schedule, self.guided = schedule, guided
        vars(self.pipe)["scheduler"] = schedule.scheduler  # prepare_latents scales by its init_noise_sigma
        self.passes_per_nfe = 2 if guided else 1
        self.grid, self.kernel = schedule.grid, schedule.kernel
        if schedule.path is not None and schedule.times is not None:
            self.path, self.times = schedule.path, schedule.times

    def convert(self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> None:
        """Go over to another path and other times (pipelines/convert.py), with one evaluation a step."""
        self._use(convert(self.schedule, path, times), guided=self.guided)

    @property
    def offloaded(self) -> bool:
        """Whether only one of the pipeline's networks is on the device at a time (enable_model_cpu_offload)."""
        return bool(getattr(self.pipe, "_all_hooks", ()))

    @cached_property
    def device(self) -> torch.device:
        return cast(torch.device, self.pipe._execution_device)  # walks through all modules

    # --- what a family defines ------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> None:
        """Encode these prompts; rows of a batch name them by index."""
        raise NotImplementedError

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Initial noise (N, ...), as the pipeline's prepare_latents draws it from these generators."""
        raise NotImplementedError

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The network's guided output, as the scheduler wants it.

        x (N, ...) scaled for the network; t (N,) the scheduler's timesteps on its device; step (N,) positions in the
        schedule and at (N,) rows of the encoded prompts (`take`), both on the CPU.
        """
        raise NotImplementedError

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of finished latents."""
        raise NotImplementedError

    def finished(self, latents: Tensor) -> Tensor:
        """Finished latents (N, ...) as the pipeline puts them out for output_type="latent"."""
        return latents

    def postprocess(self, decoded: Tensor) -> Tensor:
        """Images in [0, 1] of what a VAE decoded, by the pipeline's own processor."""
        return cast(Tensor, self.pipe.image_processor.postprocess(decoded, output_type="pt"))

    def settled(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents in the dtype in which the scheduler's steps leave them, in which the stock call unscales them.

        Finished ones come in a wider one where they share a batch with estimates. Before any prediction: the VAE's.
        """
        return latents.to(vae.dtype if self._stepped is None else self._stepped)

    # --- live.Denoiser --------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        t = self.schedule.timesteps[step].to(x.device, non_blocking=True)
        with captured(self._blocks(), self._block) as states:
            out = self.output(self.schedule.scaled(x, step), t, step, cond)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        features = self.features(states[0], x) if states else None
        return Prediction(out, self.schedule.x0(x, out, step), features)

    def decode(self, x0: Tensor) -> Tensor:
        images = self.pixels(self.pipe.vae, x0)
        self.image_dtype = images.dtype
        return images if images.dtype == torch.float64 else images.float()

    def preview(self, x0: Tensor) -> Tensor:
        return self.pixels(self.pipe.preview_vae, x0).float()

    # --- hidden features ------------------------------------------------------------------------------------------

    def _blocks(self) -> Any:
        """The network's transformer blocks, or None where features cannot be captured."""
        return None

    def features(self, states: Any, x: Tensor) -> Tensor:
        """(N, D, h, w) of the conditional pass, from what a block put out in a call on x."""
        raise NotImplementedError

    def capture(self, block: int) -> None:
        """Let `predict` hand out the picture's hidden states after this transformer block; ValueError without one."""
        blocks = self._blocks()
        if blocks is None:
            raise ValueError(f"{type(self).__name__} cannot hand out hidden features; use pixels or latents")
        if not 0 <= block < len(blocks):
            raise ValueError(f"this transformer has blocks 0 to {len(blocks) - 1}, got {block}")
        self._block = block

    # --- FLOPs ----------------------------------------------------------------------------------------------------

    def flops(self) -> tuple[float, float]:
        return self._counted("decode")

    def preview_flops(self) -> float:
        return self._counted("preview")[1]

    def _counted(self, decoder: str) -> tuple[float, float]:
        """FLOPs of a prediction and of a decode, for a prompt of typical length; kept with the pipeline per size."""
        key = ("flops", *self.setting(decoder))
        if key not in self.memo:
            self.memo[key] = self._count(decoder)
        found: tuple[float, float] = self.memo[key]
        return found

    @property
    def memo(self) -> Memo:
        """What was measured of this pipeline before, by what it was measured with; lives as long as the pipeline."""
        return cast(Memo, self.pipe._search_memo)

    def setting(self, decoder: str = "decode") -> tuple[Any, ...]:
        """What the cost and the memory of a row depend on."""
        vae = self.pipe.vae if decoder == "decode" else self.pipe.preview_vae
        parts = (getattr(self.pipe, self.network), vae)
        call = (self.height, self.width, self.passes_per_nfe, self.text_length)
        return (*(weakref.ref(p) for p in parts), *(_filling(p) for p in parts), *call)

    @torch.no_grad()
    def _count(self, decoder: str) -> tuple[float, float]:
        self.encode([_TYPICAL])
        x, zero = self.init_latents([seeded(0)]), torch.zeros(1, dtype=torch.long)
        try:
            twin = self._meta_twin()
            latent, t = x.to("meta"), self.schedule.timesteps[:1].to("meta")
            decode = count_flops(lambda: getattr(twin, decoder)(latent))
            return count_flops(lambda: twin.output(latent, t, zero, zero)), decode
        except Exception:  # what depends on values (masks) or cannot leave its device (quantised weights)
            logger.debug("FLOPs are counted by a real call", exc_info=True)
        fused = x.device.type != "cpu"
        return (
            count_flops(lambda: self.predict(x, zero, zero), fused=fused),
            count_flops(lambda: getattr(self, decoder)(x), fused=fused),
        )

    def _meta_twin(self) -> Any:
        """This denoiser with its network, decoders and encoded prompts on the meta device."""
        twin = copy.copy(self)
        vars(twin).update({name: _on_meta(value) for name, value in vars(self).items()})
        vars(twin).pop("device", None)
        twin.pipe = copy.copy(self.pipe)
        for name in (self.network, "vae", "preview_vae"):
            part = getattr(self.pipe, name, None)
            if isinstance(part, torch.nn.Module):
                vars(twin.pipe)[name] = on_meta(part)
        return twin


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list):
        return [_on_meta(v) for v in value]
    return {k: _on_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def _filling(part: Any) -> tuple[Any, ...]:
    """What changes in a network that stays the same: its numbers of weights, and the names of active LoRA adapters."""
    size = sum(parameter.numel() for parameter in part.parameters())
    try:
        return (size, *part.active_adapters()) if getattr(part, "peft_config", None) else (size,)
    except (AttributeError, ValueError):
        return (size,)


@contextmanager
def captured(blocks: Any, block: int | None) -> Iterator[list[Any]]:
    """A list that receives what `block` puts out, in one call; None: nothing."""
    states: list[Any] = []
    hook = blocks[block].register_forward_hook(lambda _, __, out: states.append(out)) if block is not None else None
    try:
        yield states
    finally:
        if hook is not None:
            hook.remove()
