"""What a search needs of its engine, and the one place where the two are compared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Need(StrEnum):
    """Something that an algorithm does and that not every engine can carry out."""

    BRANCH = "branch"
    """Several children of one particle, which come apart only where the sampler draws noise."""
    RENOISE = "renoise"
    """Particles are noised forward to a noisier step."""
    MIX = "mix"
    """Particles start from initial noise that is mixed with another one's."""
    NEAR = "near"
    """A particle's step noise is drawn near that of an earlier child of the same parent."""
    ASCEND = "ascend"
    """Particles start from initial noise that is turned along the gradient of a finished image's
    rewards."""
    DRAFT = "draft"
    """Unfinished particles are looked at by guesses of a drafter, a network beside the denoiser."""


@dataclass(frozen=True)
class Gradient:
    """A need as well: gradients of finished images with respect to their initial noise, for rows
    that ASCEND."""

    depth: int = 0
    """Evaluations that gradients go back through, the last ones; 0 for all."""
    weights: tuple[float, ...] | None = None
    """Of the rewards in the gradient; None for all alike."""


Needs = frozenset[Need | Gradient]
NOTHING: Needs = frozenset()


_NO_NOISE = (
    "and here no image follows from noise alone: a recording holds no noise, and a call may begin"
    " with a picture, or draw more of its seed; search with a model, from text to image"
)
_WHY = {
    Need.BRANCH: (
        "makes several continuations of one candidate, but this sampler is deterministic and they"
        " would stay copies; choose a kernel that draws noise: --kernel sde, kernel='sde'"
    ),
    Need.RENOISE: (
        "takes candidates back to noisier steps, which this sampler cannot do; choose a kernel that"
        " needs no history (ode, sde)"
    ),
    Need.MIX: (f"starts from mixed initial noise, {_NO_NOISE}"),
    Need.NEAR: (
        "draws step noise near other step noise, which this sampler does not allow; choose a kernel"
        " that draws noise and has no history (sde, ddim)"
    ),
    Need.ASCEND: (f"turns initial noise along gradients of rewards, {_NO_NOISE}"),
    Need.DRAFT: (
        "judges candidates by drafts, and there is no drafter; name one: --draft FOLDER,"
        " draft='FOLDER'"
    ),
}
"""What to say where a need is not offered: what the algorithm does, why that fails, and what to
choose."""


def declared(needs: Needs) -> frozenset[Need]:
    """The kinds of these needs: that for a gradient is ASCEND."""
    return frozenset(Need.ASCEND if isinstance(need, Gradient) else need for need in needs)


def missing(needs: Needs, offers: Collection[Need]) -> str:
    """What an engine that offers this cannot do for an algorithm, after whose name it is to be
    read; "" for nothing."""
    lacks = (
        [need for need in Need if need in declared(needs) and need not in offers] if needs else []
    )
    return _WHY[lacks[0]] if lacks else ""
