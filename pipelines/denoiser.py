"""What the denoisers of all families share: the call's size and schedule, noise, x0 estimates."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, Encodings
from ttsnap.pipelines.latents.rows import unscaled
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory.counted import CountedDenoiser
from ttsnap.pipelines.memory.flops import Memo

from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Kernel, Prediction


class PipelineDenoiser(CountedDenoiser):
    """The denoiser of one call of a pipeline. A family defines `encode_prompts` and `output`.

    It redefines what it does otherwise than most. Its constructor, whose arguments are those of the stock call that it
    honours (SearchMixin refuses all others), sets the size and `cfg_scale` and calls `_use(schedule, guided)`.
    """

    network: ClassVar[str] = "transformer"
    """The attribute of the pipeline that is the denoiser."""
    blocks: ClassVar[str | None] = "transformer_blocks"
    """The network's attribute that is the list of its transformer blocks; None: it has none."""
    judges_estimates: ClassVar[bool] = True
    """Whether `output` returns what `guided_output` gave it, so that estimates may be at a guidance of their own."""
    encodes_apart: ClassVar[bool] = False
    """Whether encode_prompt encodes each prompt as in any other company, by padding it to a fixed length, so that those
    that stay need not be encoded again when others come."""
    noise_dtype: ClassVar[torch.dtype | None] = None
    """That of initial noise; None: that of the encoded prompts (`_text`)."""
    cfg_scale: float
    """Of classifier-free guidance: the output is unconditional + cfg_scale * (conditional - unconditional)."""
    grid: Grid
    path: Interpolant
    times: Tensor
    kernel: Kernel
    passes_per_nfe: int
    _given: EncoderInputs
    _text: Any
    """The encoded prompts: a tensor (P, L, D), or a list with one tensor a prompt."""
    _estimate_scale: float | None = None
    _judged: Tensor | None = None
    """The output at the estimates' own guidance of the call that is under way."""
    _begins: Tensor = torch.zeros(1, dtype=torch.long)
    """The positions at which a grid begins: 0, and that of every call that was taken in."""
    image_dtype: torch.dtype = torch.float32
    """That of the images which the pipeline's VAE decoded last; `decode` widens them."""

    def __init__(self, pipe: Any) -> None:
        vars(pipe).setdefault("_search_memo", Memo())
        # A copy of the object, not of its parts: this call's scheduler and settings must not show in the user's own.
        self.pipe: Any = copy.copy(pipe)
        self._stepped: torch.dtype | None = None
        self._encodings = Encodings()

    def _use(self, schedule: Schedule, *, guided: bool) -> None:
        if getattr(self.net, "is_cache_enabled", False):
            raise ValueError("search cannot use a denoiser with a cache, whose rows change; call its disable_cache()")
        self.schedule, self.guided = schedule, guided
        vars(self.pipe)["scheduler"] = schedule.scheduler  # prepare_latents scales by its init_noise_sigma
        self.passes_per_nfe = 2 if guided else 1
        self.grid, self.kernel = schedule.grid, schedule.kernel
        if schedule.path is not None and schedule.times is not None:
            self.path, self.times = schedule.path, schedule.times

    def merge_schedule(self, other: Self) -> int:
        size, theirs = (call.setting() for call in (self, other))
        if size != theirs or (self.guided, self.cfg_scale) != (other.guided, other.cfg_scale):
            raise ValueError("calls share a network where they agree in size and guidance")
        start = len(self.schedule.timesteps)
        self.schedule = self.schedule.followed_by(other.schedule)
        self._begins = torch.cat([self._begins, torch.tensor([start])])
        return start

    def convert(self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> None:
        """Go over to another path and other times (pipelines/latents/convert.py), with one evaluation a step."""
        self._use(convert(self.schedule, path, times), guided=self.guided)

    @property
    def net(self) -> Any:
        """The network that denoises."""
        return getattr(self.pipe, self.network)

    @property
    def has_path(self) -> bool:
        return self.schedule.path is not None and self.schedule.times is not None

    @property
    def offloaded(self) -> bool:  # enable_model_cpu_offload
        return bool(getattr(self.pipe, "_all_hooks", ()))

    @cached_property
    def device(self) -> torch.device:
        return cast(torch.device, self.pipe._execution_device)  # walks through all modules

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """This size, with the pipeline's own where a side is not given."""
        native = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return height or native, width or native

    # --- what a family defines ------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Encode these prompts; rows of a batch name them by index."""
        raise NotImplementedError

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The network's guided output, as the scheduler wants it.

        x (N, ...) scaled for the network; t (N,) the scheduler's timesteps on its device; step (N,) positions in the
        schedule and at (N,) rows of the encoded prompts (`take`), both on the CPU.
        """
        raise NotImplementedError

    def guided_output(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The guided output (N, ...) of both passes, which a family's `output` returns as it is.

        Where estimates are scored at a guidance of their own, the output at that one is kept for `predict`.
        """
        if self._estimate_scale is not None:
            self._judged = self.guide(unconditional, conditional, self._estimate_scale)
        return self.guide(unconditional, conditional, self.cfg_scale)

    # --- what a family may do otherwise ---------------------------------------------------------------------------

    @property
    def channels(self) -> int:
        """Channels of latents, as `prepare_latents` is given them."""
        return int(self.net.config.in_channels)

    def prepared(self, generators: Sequence[torch.Generator]) -> Any:
        """What the pipeline's `prepare_latents` returns for these generators: initial noise (N, ...)."""
        dtype = self.noise_dtype or self._text.dtype
        return self.pipe.prepare_latents(
            len(generators), self.channels, self.height, self.width, dtype, self.device, list(generators)
        )

    def encoded(self, prompts: Sequence[Prompt]) -> Any:
        """What the pipeline's encode_prompt returns for these prompts and, under guidance, for the negative ones."""

        def encode(some: Sequence[Prompt]) -> Any:
            return self.pipe.encode_prompt(
                **self._given.arguments(some), device=self.device, do_classifier_free_guidance=self.guided
            )

        remembers = self.encodes_apart and self._given.alike
        return self._encodings(prompts, encode) if remembers else encode(prompts)

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance of outputs (N, ...) at this scale."""
        return unconditional + scale * (conditional - unconditional)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of finished latents."""
        return self.postprocess(self.decoded(vae, unscaled(vae, x0.to(vae.dtype))))

    def finished(self, latents: Tensor) -> Tensor:
        """Finished latents (N, ...) as the pipeline puts them out for output_type="latent"."""
        return latents

    def sound(self, latents: Tensor) -> Tensor | None:
        """What is to be heard of videos with these finished latents (N, ...), (N, channels, samples); None of most."""
        return None

    def postprocess(self, decoded: Tensor) -> Tensor:
        """Images in [0, 1] of what a VAE decoded, by the pipeline's own processor."""
        return cast(Tensor, self.pipe.image_processor.postprocess(decoded, output_type="pt"))

    def decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """What a VAE makes of latents in its own scale."""
        images: Tensor = vae.decode(latents, return_dict=False)[0]
        return images

    def settled(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents in the dtype in which the scheduler's steps leave them, in which the stock call unscales them.

        Finished ones come in a wider one where they share a batch with estimates. Before any prediction: the VAE's.
        """
        return latents.to(vae.dtype if self._stepped is None else self._stepped)

    # --- sampling.Denoiser----------------------------------------------------------------------------------------

    def forget_prompts(self) -> None:
        self._encodings = Encodings()

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        self.encode_prompts([Prompt.of(prompt) for prompt in prompts])

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        latents: Tensor = self.prepared(generators)
        return latents

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        t = self.schedule.timesteps[step].to(x.device, non_blocking=True)
        out = self.output(self.schedule.scaled(x, step), t, step, cond)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        judged, self._judged = self._judged, None
        estimate = None if judged is None else self.schedule.x0(x, judged, step)
        return Prediction(out, self.schedule.x0(x, out, step), estimate)

    def guide_estimates(self, scale: float) -> None:
        if not (self.guided and self.judges_estimates):
            raise ValueError(f"estimate_guidance {scale:g} needs two passes at every step, which this call of "
                             f"{type(self).__name__} does not make; guide by more than 1, or leave it out")  # fmt: skip
        self._estimate_scale = scale

    def decode(self, x0: Tensor) -> Tensor:
        images = self.pixels(self.pipe.vae, x0)
        self.image_dtype = images.dtype
        return images if images.dtype == torch.float64 else images.float()

    @property
    def previews(self) -> bool:
        return getattr(self.pipe, "preview_vae", None) is not None

    def preview(self, x0: Tensor) -> Tensor:
        return self.pixels(self.pipe.preview_vae, x0).float()

    # --- gradients ------------------------------------------------------------------------------------------------

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(getattr(self.net, "is_gradient_checkpointing", False))

    def check_differentiable(self, through: str) -> None:
        for name in ["vae", *[self.network] * (through == "denoiser")]:
            quantizer = getattr(getattr(self.pipe, name), "hf_quantizer", None)
            if quantizer is not None and not quantizer.is_trainable:
                raise ValueError(f"{name} is quantised by {type(quantizer).__name__}, which carries no gradients; "
                                 "load it in bfloat16, or guide through x0 alone")  # fmt: skip

    def parameters(self) -> Iterable[Tensor]:
        networks = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return [parameter for network in networks for parameter in network.parameters()]
