"""How candidates are denoised: the options that determine an image, with the seed and the model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ttsnap.files.settings import Json, Name, Settings, Word
from ttsnap.options.model import EMBEDDED
from ttsnap.options.option import Offered, Spec, changed, option, told, values
from ttsnap.options.variety import Repel, parse

AUTO = "auto"
NONE = "none"
"""As a drafter: the one that the model's folder names, where it is known to help; and no
drafter."""
HOT = "hot"
"""The model as its own drafter, called with a noise level below the true one."""
SELF = "self"
"""A flow map as its own drafter, which goes from any step to the end in one call."""


NOISE = "noise"
DRAFT = "draft"
"""What is finished: the seed's noise, or its draft, at the level that the drafter's settings
say."""


MOST_CALLS = 16
"""Of a drafter's network for one guess."""


def calls_of(text: str) -> tuple[str, int]:
    """What a text names, and the calls that a guess takes, of "WHERE" or "WHERE:CALLS"; one where
    none are given.

    A name that ends in a colon and a number is taken whole where it exists. ValueError without a
    name, and for no calls or too many.
    """
    head, _, tail = text.rpartition(":")
    numbered = (
        bool(head)
        and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", tail)
        and not Path(text).expanduser().exists()
    )
    where, calls = (head, int(tail)) if numbered else (text, 1)
    if not where.strip() or not 1 <= calls <= MOST_CALLS:
        raise ValueError(
            f"cannot read draft {text!r}: give hot, self, a folder or a hub id, and after it the"
            f" calls of a guess, 1 to {MOST_CALLS}, as in FOLDER:2"
        )
    return where, calls


def comes_along(draft: str) -> bool:
    """Whether a drafter's text leads to no weights but the model's and ttsnap's own, so that
    strangers may name it.

    The text is read as by who opens it: "embedded:evil" is a folder, and "embedded:2" is one where
    that exists.
    """
    return draft in (AUTO, NONE) or calls_of(draft)[0] in (HOT, SELF, EMBEDDED)


class Finish(NamedTuple):
    """From where drafts are finished; written "0.6", or "0.6:4" with the steps."""

    level: float
    """The noise level, in (0, 1], to which a draft is put back with its seed's own noise."""
    steps: int | None = None
    """Denoising steps from there; None: those that are left of the call's."""

    def __str__(self) -> str:
        return f"{self.level:g}" + ("" if self.steps is None else f":{self.steps}")

    @classmethod
    def parse(cls, text: str) -> Finish:
        """From such a text. ValueError for another."""
        match = re.fullmatch(r"(1|1\.0|0?\.[0-9]{1,6})(?::([1-9][0-9]{0,2}))?", text)
        if match is None or not float(match[1]):
            raise ValueError(
                "finish is auto, noise, draft, or a noise level in (0, 1], with the steps from"
                f" there as in 0.6:4, got {text[:40]!r}"
            )
        return cls(float(match[1]), int(match[2]) if match[2] else None)


@dataclass(frozen=True)
class SamplerOptions(Settings):
    """The sampler of a search. PNGs and recordings note it, so that it can be made again."""

    kernel: Spec = option(
        "pipeline",
        "how a step is made: pipeline (the model's own scheduler), ode, or one that draws noise:"
        " sde, sde:DIFFUSION:SCALE:BEGIN (noise from time BEGIN on), ddim:ETA, ancestral, renoise",
        python="An object of ttsnap.sampling.kernels is taken as it is.",
        written=Word,
        offered=Offered(Name | None, "how steps are made: pipeline, ode, sde, ..."),
    )
    path: Spec = option(
        None,
        "for other kernels, the path between data and noise: linear, vp, cosine, linear-vp",
        unset="the model's own",
        python="An Interpolant is taken as it is (ttsnap.pipelines.latents.convert).",
        written=Word | None,
    )
    times: Spec = option(
        "pipeline",
        "for other kernels, the path's points: pipeline, uniform, sqrt",
        python="A tensor of times is taken as it is (ttsnap.pipelines.latents.convert).",
        written=Word,
    )
    guide: Spec = option(
        None,
        "let the steps of a kernel that draws noise follow the rewards' gradient: dps:SCALE,"
        " twisted:LAM, tilted:SCALE, with :x0 after it to spare the denoiser's backward pass, and"
        " :0.9-0.2 for other noise levels than 0.75-0.3",
        python="A RewardGuidance is taken as it is (ttsnap.sampling.guided_steps).",
        written=Word | None,
        recorded=False,
    )
    draft: Spec = option(
        AUTO,
        "what guesses finished images, for searches that look at such guesses: auto (the model's"
        " own, in searches for images that are known to gain by it; record and bench take none),"
        " none, embedded (the embedded model's own), hot (the model itself; also the .json file in"
        " which it was checked), self (the model itself, where it is a flow map), published"
        " few-step weights by a name of docs/choose_drafter.md, as sdxl-hyper-4, or a LoRA or a"
        " network made for it (folder, .safetensors file or hub id), with its calls as in FOLDER:2",
        python=(
            "None is none. A network, or a Drafter, is taken as it is"
            " (ttsnap.pipelines.drafting.drafters)."
        ),
        written=str | None,
        loads="model",
        common=True,
        offered=Offered(
            bool | None,
            "look at drafts of the drafter that is offered; by default where it is known to help",
        ),
    )
    finish: Spec = option(
        AUTO,
        "what of a drafted seed is denoised: noise (its noise), draft (its draft, put back to a"
        " noise level with the seed's own noise), a level of yours as 0.6, with the steps from"
        " there as 0.6:4, or auto (the draft where that was measured to find more)",
        python="A number is a level.",
        written=Word | None,
    )
    variety: Spec = option(
        None,
        "how seeds that look alike are kept apart: repel (groups of 8 seeds push each other apart"
        " while they are noise), with the size of groups, the noise level down to which they do,"
        " factor, threshold and drop, as in repel:8:0.9:3:0.7:0.2",
        written=Word | None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "finish", AUTO if self.finish is None else str(self.finish))
        if self.finish not in (AUTO, NOISE, DRAFT):
            Finish.parse(self.finish)
        if self.repel is not None and self.finishes:
            raise ValueError(
                "seeds that variety repel keeps apart begin as noise, not as drafts; set finish to"
                " noise"
            )
        if isinstance(self.draft, str) and self.draft == NONE:
            object.__setattr__(self, "draft", None)

    def drafted_by(self, drafter: Spec) -> SamplerOptions:
        """The same with this drafter (None for none) in place of `AUTO`."""
        return replace(self, draft=drafter) if self.left_open else self

    def from_noise(self) -> SamplerOptions:
        """The same, whose drafts only rank seeds."""
        return replace(self, finish=NOISE)

    def from_drafts(self) -> SamplerOptions:
        """The same, whose drafts are finished: from where it says, or else the drafter's
        settings."""
        return self if self.finishes else replace(self, finish=DRAFT)

    @property
    def left_open(self) -> bool:
        """Whether the model's own drafter may be taken."""
        return isinstance(self.draft, str) and self.draft == AUTO

    @property
    def repel(self) -> Repel | None:
        """Groups of seeds that begin together. ValueError for another text."""
        return None if self.variety is None else parse(self.variety)

    @property
    def finishes(self) -> bool:
        """Whether drafts are finished, as far as is known before a drafter's settings are read."""
        return self.finish not in (AUTO, NOISE)

    @property
    def stock(self) -> bool:
        """Whether plain diffusers makes the same images from the same seeds."""
        return not self.finishes and not set(changed(self)) - {"draft", "finish"}

    def told(self) -> dict[str, Json]:
        """The values for metadata: for objects the names of their classes, for a drafter of `AUTO`
        none, and where drafts are finished only where they are."""
        texts = {name: told(value) for name, value in values(self.drafted_by(None)).items()}
        return {**texts, "finish": texts["finish"] if self.finishes else None}

    def noted(self) -> dict[str, Json]:
        """The values that a recording notes: the kernel, what belongs to it, and all that are not
        at their defaults."""
        names = {"kernel", *changed(self)} - (
            {"draft"} if self.drafted_by(None).draft is None else set()
        )
        if self.kernel != "pipeline":
            names |= {"path", "times"}
        return {name: value for name, value in self.told().items() if name in names}
