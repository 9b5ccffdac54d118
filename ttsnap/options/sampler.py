"""How candidates are denoised: the options that determine an image, with the seed and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from ttsnap.files.settings import Bounds, Json, Settings, Word
from ttsnap.options.option import Spec, changed, option, options_of, values

AUTO, NONE = "auto", "none"
"""As a drafter: the one that the model's folder names, where it is known to help; and no drafter."""
HOT = "hot"
"""The model as its own drafter, called with a noise level below the true one."""


@dataclass(frozen=True)
class SamplerOptions(Settings):
    """The sampler of a search. PNGs and recordings note it, so that it can be made again."""

    kernel: Spec = option(
        "pipeline",
        "how a step is made: pipeline (the model's own scheduler), ode, or one that draws noise: sde, "
        "sde:DIFFUSION:SCALE:BEGIN (noise from time BEGIN on), ddim:ETA, ancestral, renoise",
        python="An object of ttsnap.sampling.kernels is taken as it is.",
        written=Word,
    )
    path: Spec = option(
        None,
        "for other kernels, the path between data and noise: linear, vp, cosine, linear-vp, polynomial",
        unset="the model's own",
        python="An Interpolant is taken as it is (ttsnap.pipelines.latents.convert).",
        written=Word | None,
        noted=True,
    )
    times: Spec = option(
        "pipeline",
        "for other kernels, the path's points: pipeline, uniform, sqrt",
        python="A tensor of times is taken as it is (ttsnap.pipelines.latents.convert).",
        written=Word,
        noted=True,
    )
    guide: Spec = option(
        None,
        "let the steps of a kernel that draws noise follow the rewards' gradient: dps:SCALE, twisted:LAM, "
        "tilted:SCALE, with :x0 after it to spare the denoiser's backward pass, and :0.9-0.2 for other noise levels "
        "than 0.75-0.3",
        python="A RewardGuidance is taken as it is (ttsnap.sampling.guided_steps).",
        written=Word | None,
        recorded=False,
    )

    estimate_guidance: Annotated[float, Bounds(0, 1000)] | None = option(
        None,
        "classifier-free guidance at which unfinished estimates are scored, where the model makes two passes; it takes "
        "no evaluation more, and the image does not change",
        unset="that of the image",
        metavar="SCALE",
    )
    draft: Spec = option(
        AUTO,
        "what guesses finished images, for searches that look at such guesses: auto (the model's own, in searches for "
        "images that are known to gain by it; record and bench take none), none, embedded (the embedded model's own), "
        "hot (the model itself; also the .json file in which it was checked), or a LoRA or a network made for it "
        "(folder, .safetensors file or hub id), with its calls as in FOLDER:2",
        python="None is none. A network, or a Drafter, is taken as it is (ttsnap.pipelines.drafting.drafters).",
        written=str | None,
        loads="model",
        common=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.draft, str) and self.draft == NONE:
            object.__setattr__(self, "draft", None)

    def drafted_by(self, drafter: Spec) -> SamplerOptions:
        """The same with this drafter (None for none) in place of `AUTO`."""
        left_open = isinstance(self.draft, str) and self.draft == AUTO
        return replace(self, draft=drafter) if left_open else self

    @property
    def stock(self) -> bool:
        """Whether plain diffusers makes the same images from the same seeds."""
        return not set(changed(self)) - {"estimate_guidance", "draft"}

    def told(self) -> dict[str, Json]:
        """The values for metadata: for objects the names of their classes, for a drafter of `AUTO` none."""
        return {
            name: value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
            for name, value in values(self.drafted_by(None)).items()
        }

    def noted(self) -> dict[str, Json]:
        """The values that a recording notes: the kernel, what belongs to it, and all that are not at their defaults."""
        names = {"kernel", *changed(self)} - ({"draft"} if self.drafted_by(None).draft is None else set())
        if self.kernel != "pipeline":
            names |= {option.name for option in options_of(type(self)) if option.noted}
        return {name: value for name, value in self.told().items() if name in names}
