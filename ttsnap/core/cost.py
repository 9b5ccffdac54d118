"""The kinds of cost that everything is counted in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What something takes, in whole units.

    `nfe` counts guided evaluations of the denoiser for one particle: with classifier-free guidance one NFE is two
    forward passes (`Price.passes_per_nfe`). `decodes` counts latents decoded to pixels, `reward_calls` images
    scored, once per reward; `previews` counts unfinished estimates decoded by a cheap preview VAE instead.
    `gradients` counts backward passes through a decode and its rewards, `backwards` those through an evaluation of the
    denoiser. Their forward halves are counted where they belong: in `decodes`, `reward_calls` and `nfe`.
    """

    nfe: int = 0
    decodes: int = 0
    reward_calls: int = 0
    previews: int = 0
    gradients: int = 0
    backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.decodes + other.decodes, self.reward_calls + other.reward_calls,
                    self.previews + other.previews, self.gradients + other.gradients,
                    self.backwards + other.backwards)  # fmt: skip

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.nfe - other.nfe, self.decodes - other.decodes, self.reward_calls - other.reward_calls,
                    self.previews - other.previews, self.gradients - other.gradients,
                    self.backwards - other.backwards)  # fmt: skip

    def counts(self) -> dict[str, int]:
        """JSON-ready; kinds that only some searches know are left out where they are 0."""
        rare = {"previews": self.previews, "gradients": self.gradients, "backwards": self.backwards}
        found = {"nfe": self.nfe, "decodes": self.decodes, "reward_calls": self.reward_calls}
        return found | {k: v for k, v in rare.items() if v}
