"""The denoiser of a pipeline's call: what all families share."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast
from weakref import proxy

import torch
from torch import Tensor

from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.core.prompt import Prompt
from ttsnap.options.variety import Repel
from ttsnap.pipelines.guidance import Guidance, Texts, bytes_of, on, taken
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, Encodings, joined
from ttsnap.pipelines.latents.layouts import Plain, unscaled
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory import flops
from ttsnap.pipelines.patches import refuse_patches
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.profiling.memory import fitting, gauge_of
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Costs, Denoiser
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.repel import coupled

logger = logging.getLogger(__name__)
PART = 16
"""Prompts of a call of the text encoders."""
ENCODING = threading.RLock()
"""Held while prompts are encoded: fast tokenizers are set, by each call, to how it pads and
cuts."""


NO_FLOW_MAP = (
    "draft self is for flow maps, whose network reads the time that it is to arrive at, and that of"
    " this call reads none; draft hot takes any model"
)


class PipelineDenoiser(Denoiser):
    """One call of a pipeline, composed of a layout of latents, a schedule, a guidance and perhaps a
    drafter.

    A family defines `honours`, `read_call` and `call`, and overrides what it does differently from
    most.
    """

    honours: ClassVar[str] = ""
    """The arguments of the stock call, besides the prompt, that a search takes: names, separated by
    blanks."""
    network: ClassVar[str] = "transformer"
    """The pipeline's attribute that is the denoising network."""
    halves: ClassVar[bool] = False
    """Whether encode_prompt returns all positive fields before all negative ones. In other families
    they alternate."""
    encodes_apart: ClassVar[bool] = False
    """Whether a prompt's encoding is the same in any batch, as it is padded to a fixed length. Then
    it is kept."""
    shared_texts: ClassVar[int] = 0
    """How many of the text fields, which are the last, are the same for all prompts."""
    noise_dtype: ClassVar[torch.dtype | None] = None
    """The dtype of initial noise; None: that of the encoded prompts."""
    reads_scale: ClassVar[str | None] = None
    """The setting of networks with distilled guidance, which read its scale (`embedded_scale`)."""
    cannot: ClassVar[Mapping[Capability, str]] = {}
    """What no call of the family can do, with the error message."""
    layout: Plain
    inputs: EncoderInputs
    """What the text encoders read besides the prompts."""
    negative_inputs: EncoderInputs | None = None
    """The same for negative prompts, in pipelines that encode these by a second call."""
    text_length: Hashable = None
    """What decides on the number of text tokens, and so on FLOPs, where calls may differ in it."""
    schedule: Schedule
    guidance: Guidance
    embedded_scale: float | None = None
    """The scale that a network with distilled guidance reads."""
    texts: Texts
    """The encoded prompts."""
    image_dtype: torch.dtype = torch.float32
    """The dtype in which the VAE decoded the last images, before `decode` widened them."""
    _in_ram = False
    """Whether encoded prompts are not on the device."""
    _stepped: torch.dtype | None = None
    """The dtype in which the scheduler's steps leave latents; None before any prediction."""

    def __init__(self, pipe: Any, **call: Any) -> None:
        vars(pipe).setdefault("_search_memo", flops.Memo())
        # this call's scheduler and settings must not show in the user's
        self.pipe: Any = copy.copy(pipe)
        refuse_patches({f"pipe.{name}": part for name, part in pipe.components.items()})
        self.device = self.pipe._execution_device  # read once: it walks through all modules
        self._encodings = Encodings()
        if takes := self.honours.split():
            if unknown := sorted(call.keys() - takes):
                raise TypeError(
                    f"{type(self).__name__} takes no {', '.join(unknown)}; it takes"
                    f" {', '.join(takes)}"
                )
            stock: Any = next(
                base for base in type(pipe).__mro__ if base.__module__.startswith("diffusers.")
            )
            refuse_patches({stock.__name__: stock})
            known = inspect.signature(stock.__call__).parameters
            call = {name: known[name].default for name in takes} | call
        self.read_call(SimpleNamespace(**call))

    def check_inputs(self, call: SimpleNamespace, height: int, width: int, **changes: Any) -> None:
        """Run the pipeline's own check of these arguments, with changes. ValueError for what it
        refuses."""
        # PixArt-Sigma refuses a call without callback_steps.
        values = {
            "callback_steps": 1,
            **vars(call),
            "prompt": self.inputs.checked,
            "height": height,
            "width": width,
        }
        values |= changes
        self.pipe.check_inputs(
            **{n: values.get(n) for n in inspect.signature(self.pipe.check_inputs).parameters}
        )

    def set_up(self, schedule: Schedule, guidance: Guidance) -> None:
        """Set the schedule and the guidance."""
        self.schedule, self.guidance = schedule, guidance
        # prepare_latents scales by its init_noise_sigma
        vars(self.pipe)["scheduler"] = schedule.scheduler
        self.passes_per_nfe = guidance.passes
        self.grid, self.kernel = schedule.grid, schedule.kernel
        stay = getattr(self.pipe, "_exclude_from_cpu_offload", ())
        # enable_model_cpu_offload
        self.offloaded = bool(getattr(self.pipe, "_all_hooks", ())) and "vae" not in stay
        self.gradient_checkpointing = bool(getattr(self.net, "is_gradient_checkpointing", False))
        if schedule.path is not None and schedule.times is not None:
            self.path, self.times = schedule.path, schedule.times
        self.can = frozenset(self._abilities()) - self.cannot.keys()

    def _abilities(self) -> set[Capability]:
        """What this call can do, before `cannot` is taken away."""
        found = {Capability.SHARE, Capability.DRAFT, Capability.DIFFERENTIATE, Capability.COUPLE}
        if self.schedule.path is not None and self.schedule.times is not None:
            found.add(Capability.PATH)
        if getattr(self.pipe, "preview_vae", None) is not None:
            found.add(Capability.PREVIEW)
        return found

    def must(self, can: Capability) -> None:
        """ValueError where the family cannot do this."""
        if can in self.cannot:
            raise ValueError(self.cannot[can])

    def convert(
        self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline"
    ) -> None:
        """Sample along another path, at other times (pipelines/latents/convert.py), with one
        evaluation a step."""
        self.set_up(convert(self.schedule, path, times), self.guidance)

    def begin_later(self, step: int) -> None:
        """Let the grid begin at this step of what it is, to which a `starter` brings particles."""
        at = self.guidance.at
        later = None if at is None else at[int(self.grid.calls[step]) :]
        self.set_up(self.schedule.beginning_at(step), replace(self.guidance, at=later))

    def coupled(
        self, how: Repel, calls: int
    ) -> tuple[Callable[..., Prediction], Callable[[], float]]:
        """`predict` of a group of seeds that are coupled, in the first evaluations of this call, and
        the FLOPs of it beside an evaluation of each seed (sampling.starts.Coupled)."""
        # other searches call the network itself meanwhile, which the copy is not
        net, here = shared_copy(self.net), proxy(self)
        whole, guidance = self.schedule, self.guidance

        def coupling(twin: Any, key: rng.Key = (0, 0)) -> AbstractContextManager[None]:
            return coupled(twin.net, how, lambda _: twin.image_tokens, key)

        def predict(x: Tensor, step: Tensor, cond: Tensor, key: rng.Key | None) -> Prediction:
            twin = here.by(net, schedule=whole, guidance=guidance)
            with nullcontext() if key is None else coupling(twin, key):
                prediction: Prediction = twin.predict(x, step, cond)
            return prediction

        count = partial(flops.counted_coupled, here, how.size, partial(here.by, net), coupling)
        return predict, count

    @property
    def image_tokens(self) -> slice:
        """Where image tokens are in the attention of the network's blocks, some of which read text
        as well."""
        return slice(None)

    @property
    def net(self) -> Any:
        """The network that denoises."""
        return getattr(self.pipe, self.network)

    @property
    def scale(self) -> float:
        """The guidance scale of this call: the one that the network reads, or that of its two
        passes."""
        if self.embedded_scale is None or not self.embeds:
            return self.guidance.scale
        return self.embedded_scale

    @property
    def embeds(self) -> bool:
        """Whether the network reads a guidance scale."""
        return self.reads_scale is not None and bool(self.net.config.get(self.reads_scale))

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """This size in pixels; a side that is None is the pipeline's own."""
        native = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return height or native, width or native

    # --- what a family defines or overrides -------------------------------------------------------

    def read_call(self, call: SimpleNamespace) -> None:
        """Set `layout` and `inputs` from the arguments of a stock call, and `set_up` a schedule and
        a guidance. ValueError for schedulers that search cannot use, and for what the pipeline
        refuses."""
        raise NotImplementedError

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        """One pass of the network at x (M, ...) and timesteps t (M,) with the encoded texts of
        these rows: (M, ...)."""
        raise NotImplementedError

    def _encode(
        self, inputs: EncoderInputs, prompts: Sequence[Prompt], n: int | None = None, **more: Any
    ) -> list[Any]:
        """What the pipeline's encode_prompt returns for these prompts and inputs. n: see
        EncoderInputs.arguments."""

        whole = not inputs.alike or n not in (None, len(prompts))

        def encode(some: Sequence[Prompt]) -> Any:
            with ENCODING:
                given = inputs.arguments(some, n if whole else None)
                return self.pipe.encode_prompt(**given, device=self.device, **more)

        if whole:
            return list(encode(prompts))
        parts = partial(self._in_parts, encode)
        return list(self._encodings(prompts, parts) if self.encodes_apart else parts(prompts))

    def _in_parts(
        self, encode: Callable[[Sequence[Prompt]], Any], prompts: Sequence[Prompt]
    ) -> list[Any]:
        """What encode(prompts) returns, for a part of them at a time. It goes to RAM where it would
        fill the device."""
        parts: list[Any] = []
        size = at = 0

        def lacks(n: int, short: str) -> None:
            if n < 2:
                raise NotEnoughMemoryError(
                    f"encoding one prompt takes more memory than there is: {short}"
                )
            logger.warning("out of memory: prompts are encoded %d at a time", n // 2)

        while at < len(prompts):
            part, size = fitting(prompts[at : at + (size or PART)], encode, lacks)
            if not parts and (gauge := gauge_of(self.device)) is not None:
                self._in_ram |= bytes_of(part) // size * len(prompts) > gauge.free() // 4
            parts.append(on(part, torch.device("cpu")) if self._in_ram else part)
            at += size
        return joined(parts, self.shared_texts)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of finished latents."""
        return self.postprocess(vae.decode(unscaled(vae, x0.to(vae.dtype)), return_dict=False)[0])

    def finished(self, latents: Tensor) -> Tensor:
        """Finished latents (N, ...) as the pipeline returns them for output_type="latent"."""
        return latents

    def seen(self, latents: Tensor) -> Tensor:
        """The part of latents (N, ...) that becomes an image or a video, without its sound."""
        return latents

    def must_return(self, form: str) -> None:
        """ValueError where the stock call returns nothing in this form (output_type)."""

    def by(self, net: Any, **more: Any) -> Self:
        """A copy, with the encoded prompts, whose network is another. more: other attributes of
        it."""
        twin = copy.copy(self)
        vars(twin).update(pipe=copy.copy(self.pipe), **more)
        vars(twin.pipe)[self.network] = net
        return twin

    def by_drafter(self, net: Any, scale: float | None, *, arrives: bool = False) -> Self:
        """A copy, as of `by`, which evaluates as drafters do: by this network, guided at this
        scale.

        None: without guidance, or at the call's scale where the network reads one. arrives: whether
        the network, a flow map, is told to arrive at the end, guided as the call is. ValueError for
        guidance that needs negative prompts, where the call encodes none, and for no flow map.
        """
        if arrives:
            raise ValueError(NO_FLOW_MAP)
        twin, own = self.by(net, drafts=None, _stepped=None), self.guidance
        if scale is not None and twin.embeds:
            twin.embedded_scale, scale = scale, None
        if scale is not None and not own.guided:
            raise ValueError(
                f"this draft is made at guidance {scale:g}, for which this call of "
                f"{type(twin).__name__} encodes no negative prompt; guide by more than 1"
            )
        own_scale = own.scale if scale is None else scale
        twin.guidance = replace(own, guided=scale is not None, scale=own_scale)
        twin.passes_per_nfe = twin.guidance.passes
        return twin

    def draft_flops(self, twin: Callable[[], Self]) -> float:
        """FLOPs of one forward pass of a drafter. twin: makes the copy that evaluates by it."""
        return flops.counted_draft(self, twin)

    def meta_twin(self) -> Self:
        """A copy with all tensors that `predict` and a decode read on the meta device."""
        twin: Self = flops.meta_twin(self)
        return twin

    # --- what families build on -------------------------------------------------------------------

    def guided(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The network's guided output (N, ...), as the scheduler wants it.

        x (N, ...), scaled for the network, and t (N,), the scheduler's timesteps, are on the
        device. step (N,), positions in the schedule, and at (N,), rows of the encoded prompts, are
        on the CPU.
        """
        texts = self.texts
        if self._in_ram:
            texts = texts.each(lambda fields: on(taken(fields, at), x.device))
            at = torch.arange(len(at))
        return self.guidance(self.call, x, t, step, texts, at)

    def forward(self, *inputs: Any, **more: Any) -> Tensor:
        """What the network makes of these inputs."""
        out: Tensor = self.net(*inputs, **more, return_dict=False)[0]
        return out

    def embedded(self, x: Tensor) -> Tensor | None:
        """The scale (N,) float32 that a network with distilled guidance reads; None for other
        networks."""
        if self.embedded_scale is None or not self.embeds:
            return None
        return torch.full([1], self.embedded_scale, device=x.device, dtype=torch.float32).expand(
            len(x)
        )

    def postprocess(self, decoded: Tensor) -> Tensor:
        """Images in [0, 1] of a VAE's output, by the pipeline's own processor."""
        fitted = self.layout.fitted(self.pipe.image_processor, decoded)
        return cast(Tensor, self.pipe.image_processor.postprocess(fitted, output_type="pt"))

    def settled(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents in the dtype in which steps leave them, and the stock call unscales them:
        finished ones are wider where they share a batch with estimates. Before any prediction: the
        VAE's dtype."""
        return latents.to(vae.dtype if self._stepped is None else self._stepped)

    # --- sampling.Denoiser ------------------------------------------------------------------------

    def forget_prompts(self) -> None:
        self._encodings = Encodings()

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        # One call of the text encoders, which pads to the longest.
        all_prompts, guided = [Prompt.of(prompt) for prompt in prompts], self.guidance.guided
        if self.negative_inputs is not None:
            positive = self._encode(self.inputs, all_prompts)
            n = len(positive[0])
            self.texts = Texts(
                positive, self._encode(self.negative_inputs, all_prompts, n) if guided else None
            )
            return
        parts = self._encode(self.inputs, all_prompts, do_classifier_free_guidance=guided)
        half = len(parts) // 2
        positive, negative = (
            (parts[:half], parts[half:]) if self.halves else (parts[::2], parts[1::2])
        )
        self.texts = Texts(positive, negative if guided else None)

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        made = self.pipe.prepare_latents(
            len(generators),
            self.layout.channels(self.net),
            self.layout.height,
            self.layout.width,
            self.noise_dtype or self.texts.positive[0].dtype,
            self.device,
            list(generators),
        )
        # packed latents come with their ids
        latents: Tensor = made[0] if isinstance(made, tuple) else made
        return latents

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        t = self.schedule.timesteps[step].to(x.device, non_blocking=True)
        out = self.guided(self.schedule.scaled(x, step), t, step, cond)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        return Prediction(out, self.schedule.x0(x, out, step))

    def decode(self, x0: Tensor) -> Tensor:
        images = self.pixels(self.pipe.vae, x0)
        self.image_dtype = images.dtype
        return images if images.dtype == torch.float64 else images.float()

    def preview(self, x0: Tensor) -> Tensor:
        return self.pixels(self.pipe.preview_vae, x0).float()

    def costs(self) -> Costs:
        nfe, decode = flops.counted(self, "decode")
        preview = flops.counted(self, "preview")[1] if Capability.PREVIEW in self.can else 0.0
        return Costs(nfe, decode, preview, 0.0 if self.drafts is None else self.drafts.flops())

    def memo(self, decoder: str = "decode") -> MutableMapping[Hashable, Any]:
        memo: flops.Memo = self.pipe._search_memo
        return memo.of(flops.setting_of(self, decoder))

    def merge_schedule(self, other: Self) -> int:
        self.must(Capability.SHARE)
        if flops.setting_of(self, "decode") != flops.setting_of(other, "decode"):
            raise ValueError("calls share a network where they agree in size and guidance")
        start, guidance = len(self.schedule.timesteps), self.guidance.followed_by(other.guidance)
        self.schedule, self.guidance = self.schedule.followed_by(other.schedule), guidance
        return start

    def differentiable(self, through: str) -> Sequence[Tensor]:
        self.must(Capability.DIFFERENTIATE)
        return self._weights(["vae", *[self.network] * (through == "denoiser")])

    def _weights(self, names: Sequence[str]) -> list[Tensor]:
        """The weights of all networks. ValueError where gradients cannot go through one of these
        parts."""
        for name in names:
            quantizer = getattr(getattr(self.pipe, name), "hf_quantizer", None)
            if quantizer is not None and not quantizer.is_trainable:
                raise ValueError(
                    f"{name} is quantised by {type(quantizer).__name__}, which carries no"
                    " gradients; load it in bfloat16, or guide through x0 alone"
                )
        networks = [
            part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)
        ]
        return [parameter for network in networks for parameter in network.parameters()]
