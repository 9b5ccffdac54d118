"""How candidates are denoised: the options that decide, with the seed and the model, which image comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ttsnap.files.settings import NotNegative
from ttsnap.files.typed import Json
from ttsnap.options.option import Spec, changed, option, options_of, values

HOT = "hot"
"""The name of the model itself as its own drafter, told that there is less noise than there is."""
Noises = Literal["independent", "orthogonal", "antithetic"]
"""How initial noises lie to one another (ttsnap.sampling.noises)."""


@dataclass(frozen=True)
class SamplerOptions:
    """The sampler of a search. What it is made of goes into PNGs and recordings, so that it can be made again."""

    kernel: Spec = option(
        "pipeline",
        "how a step is made: pipeline (the model's own scheduler), ode, or one that draws noise: sde, "
        "sde:DIFFUSION:SCALE:BEGIN (noise from time BEGIN on), ddim:ETA, ancestral, renoise",
        python="An object of ttsnap.sampling.kernels is taken as it is.",
        written=str,
    )
    path: Spec = option(
        None,
        "for other kernels, the path between data and noise: linear, vp, cosine, linear-vp, polynomial",
        unset="the model's own",
        python="An Interpolant is taken as it is (ttsnap.pipelines.convert).",
        written=str | None,
        noted=True,
    )
    times: Spec = option(
        "pipeline",
        "for other kernels, the path's points: pipeline, uniform, sqrt",
        python="A tensor of times is taken as it is (ttsnap.pipelines.convert).",
        written=str,
        noted=True,
    )
    noises: Noises = option(
        "independent",
        "initial noises: independent, as in diffusers, orthogonal in groups of 8 seeds, or antithetic in pairs",
        python="ttsnap.sampling.noises tells how they are drawn.",
        metavar="KIND",
    )
    guide: Spec = option(
        None,
        "let the steps of a kernel that draws noise follow the rewards' gradient: dps:SCALE, twisted:LAM, "
        "tilted:SCALE, with :x0 after it to spare the denoiser's backward pass, and :0.9-0.2 for other noise levels "
        "than 0.75-0.3",
        python="A Guidance is taken as it is (ttsnap.sampling.guided_steps).",
        written=str | None,
        recorded=False,
    )

    estimate_guidance: NotNegative | None = option(
        None,
        "classifier-free guidance at which unfinished estimates are scored, where the model makes two passes; it takes "
        "no evaluation more, and the image does not change",
        unset="that of the image",
        metavar="SCALE",
    )
    draft: Spec = option(
        None,
        "what guesses finished images, for searches that look at such guesses: embedded (the embedded model's own), "
        "hot (the model itself; also the .json file in which it was checked), or a LoRA or a network made for it "
        "(folder, .safetensors file or hub id), with its calls as in FOLDER:2",
        python="A network, or a Drafter, is taken as it is (ttsnap.pipelines.drafters).",
        unset="nothing",
        written=str | None,
        loads="model",
        common=True,
    )

    @property
    def stock(self) -> bool:
        """Whether plain diffusers makes the same image from the same seed."""
        return not set(changed(self)) - {"estimate_guidance", "draft"}

    def told(self) -> dict[str, Json]:
        """The values for metadata; an object that was given in place of a text goes by its class's name."""
        return {
            name: value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
            for name, value in values(self).items()
        }

    def noted(self) -> dict[str, Json]:
        """What a recording notes: the kernel, what belongs to it, and what else is not at its default."""
        names = {"kernel", *changed(self)}
        if self.kernel != "pipeline":
            names |= {option.name for option in options_of(type(self)) if option.noted}
        return {name: value for name, value in self.told().items() if name in names}
