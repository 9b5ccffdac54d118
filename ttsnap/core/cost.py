"""The kinds of cost that everything is counted in: the fields of `PerKind`, one line each.

Adding, pricing, capping, printing and recording a kind follow from its line; left to write is where
it is charged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from operator import add, attrgetter, sub
from typing import Any, Generic, Literal, TypeVar, get_args

N = TypeVar("N")
Phase = Literal["denoise", "decode", "reward", "gradient"]
"""The part of a search that a kind of cost belongs to: results add FLOPs up by it."""
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class CostKind:
    """One kind of cost: a line of the table in `PerKind`."""

    name: str
    """Its field in `Cost`, `Rates` and `Budget`, in the plural where English has one."""
    phase: Phase
    """The part of a search that it belongs to."""
    label: str
    """What messages call it."""
    unit: str
    """How a budget is written in it ("100decodes"; the singular is read as well)."""
    rare: bool
    """Whether only some searches know it, so that JSON leaves it out where it is 0."""
    summed: bool
    """Whether results say how many there were, and not only what they took."""
    newer: bool
    """Whether files were written before it was known. Results and prices then leave it out, too,
    where it is 0."""

    @property
    def one(self) -> str:
        """The name of one of it: the key of its price in recordings ("reward_call")."""
        return self.name.removesuffix("s")


def kind(
    phase: Phase,
    label: str,
    unit: str,
    *,
    rare: bool = False,
    summed: bool = True,
    newer: bool = False,
) -> Any:
    """A line of the table below (`CostKind`). Like dataclasses.field, it may stand where a field of
    any type does."""
    metadata = {
        "phase": phase,
        "label": label,
        "unit": unit,
        "rare": rare,
        "summed": summed,
        "newer": newer,
    }
    return field(metadata=metadata)


@dataclass(frozen=True, slots=True)
class PerKind(Generic[N]):
    """One value for each kind of cost; a subclass says of what type, and which value `unset` kinds
    have."""

    nfe: N = kind("denoise", "NFE", "nfe")
    """Guided evaluations of the denoiser for one particle: two forward passes with classifier-free
    guidance (`Price.passes_per_nfe`)."""
    decodes: N = kind("decode", "decodes", "decodes")
    """Latents decoded to pixels."""
    reward_calls: N = kind("reward", "reward calls", "rewards")
    """Images scored, once per reward. Of a video: each frame that a reward of images sees, or the
    whole for a reward of videos."""
    previews: N = kind("decode", "previews", "previews", rare=True)
    """Unfinished estimates decoded by a cheap preview VAE, in place of a decode."""
    gradients: N = kind("gradient", "gradients", "gradients", rare=True)
    """Backward passes through a decode and its rewards. The forward halves are decodes and reward
    calls."""
    backwards: N = kind("gradient", "backward passes", "backwards", rare=True, summed=False)
    """Backward passes through an evaluation of the denoiser. The forward halves are evaluations."""
    draft_calls: N = kind("denoise", "draft calls", "draftcalls", rare=True, newer=True)
    """Calls of a drafter for one particle, of `Price.passes_per_draft` forward passes each. A cap
    in NFE holds them as well, by their share of an evaluation's passes."""
    tokens: N = kind("reward", "tokens", "tokens", rare=True, newer=True)
    """Tokens of language models behind an API that rewards ask. A plan is charged the most that
    they may be (`Price.tokens`); the rest is refunded with the scores."""

    features: N = kind("reward", "images described", "features", rare=True, newer=True)
    """Images, of estimates or finished, of which features were taken, by which a search keeps
    images that differ."""
    base_calls: N = kind("reward", "base calls", "basecalls", rare=True, newer=True)
    """Finished images that noise-aware rewards left to their bases, which take more than a look at
    an estimate does: the rate is the rest."""
    coupled: N = kind("denoise", "coupled", "coupled", rare=True, newer=True)
    """Evaluations that were coupled with those of a group of seeds (core/start.py): the rate is what
    that takes beside them."""

    def __init_subclass__(cls, unset: object = MISSING) -> None:
        """Give the subclass a field for each kind, with its own type and default, before @dataclass
        reads them."""
        # @dataclass makes a class with slots a second time, with the fields in place
        if unset is MISSING:
            return
        (held,) = get_args(vars(cls)["__orig_bases__"][0])
        for line in fields(PerKind):
            cls.__annotations__[line.name] = held
            setattr(cls, line.name, field(default=unset, metadata=line.metadata))

    def amounts(self) -> tuple[N, ...]:
        """The values, in the order of KINDS."""
        return _amounts(self)

    def named(self) -> dict[str, N]:
        """The values by the names of their kinds."""
        return dict(zip(NAMES, self.amounts(), strict=True))


KINDS = tuple(CostKind(line.name, **line.metadata) for line in fields(PerKind))
"""Every kind of cost, in the order of the table."""
NAMES = tuple(kind.name for kind in KINDS)
"""Their names, the fields of `PerKind`."""
PLACES = {
    phase: tuple(i for i, kind in enumerate(KINDS) if kind.phase == phase) for phase in PHASES
}
"""Where in KINDS each phase's kinds are."""
RARE = tuple(kind.name for kind in KINDS if kind.rare)
"""The names of those that JSON leaves out where they are 0."""
_amounts = attrgetter(*NAMES)


@dataclass(frozen=True, slots=True)
class Cost(PerKind[int], unset=0):
    """What something takes, in whole units of each kind (`PerKind` explains them)."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, _amounts(self), _amounts(other)))

    def plus(self, *others: Cost) -> Cost:
        """The sum of several, in less time than by several `+`."""
        amounts: Iterable[int] = _amounts(self)
        for other in others:
            amounts = map(add, amounts, _amounts(other))
        return Cost(*amounts)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*map(sub, _amounts(self), _amounts(other)))

    def counts(self) -> dict[str, int]:
        """JSON-ready; kinds that only some searches know are left out where they are 0."""
        counts = self.named()
        for name in RARE:
            if not counts[name]:
                del counts[name]
        return counts


@dataclass(frozen=True)
class Rates(PerKind[float], unset=0.0):
    """A price per unit of each kind of cost, in FLOPs or in seconds. `call` is a fixed overhead per
    denoiser batch.

    Those of `gradients` and `backwards` are for backward passes alone: their forward halves are
    among the decodes, reward calls and evaluations of a Cost, so that nothing is paid twice.
    """

    call: float = 0.0

    def of(self, cost: Cost) -> float:
        """What all of a cost takes, but for the overhead of batches: the dot product, added up
        phase by phase."""
        rates = self.amounts()
        amounts = cost.amounts()
        taken = 0.0
        for places in PLACES.values():
            part = 0.0
            for i in places:
                part += rates[i] * amounts[i]
            taken += part
        return taken

    def by_phase(self, cost: Cost) -> dict[Phase, float]:
        """What each phase of a cost takes; they add up to `of` it."""
        rates = self.amounts()
        amounts = cost.amounts()
        taken = dict.fromkeys(PHASES, 0.0)
        for phase, places in PLACES.items():
            for i in places:
                taken[phase] += rates[i] * amounts[i]
        return taken

    def pixels(self, estimates: str) -> float:
        """What making pixels of one unfinished estimate takes; `estimates` as in Price."""
        return {"decode": self.decodes, "preview": self.previews, "nothing": 0.0}[estimates]
