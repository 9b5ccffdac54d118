"""What the search of one prompt took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from ttsnap.core.cost import KINDS, PHASES, Cost, Phase
from ttsnap.core.price import Price

_SUMMED = [kind for phase in PHASES if phase != "denoise" for kind in KINDS if kind.phase == phase and kind.summed]
FORWARD = [kind.name for kind in _SUMMED if kind.phase != "gradient" and not kind.newer]
BACKWARD = [kind.name for kind in _SUMMED if kind.phase == "gradient"]
NEWER = [kind.name for kind in KINDS if kind.summed and kind.newer]
"""What files name beside evaluations: kinds of cost, phase by phase; newer ones only where there was any."""


class Usage(TypedDict, total=False):
    """What a run used besides evaluations, JSON-ready: None where it is unknown, nothing at all where none is measured.

    The most memory that was held and whose it is; energy, where its joules come from (energy_kind), and the CO2e that
    follows from it, with the grid's intensity and the power usage effectiveness that were reckoned with.
    """

    seconds: float
    peak_memory_bytes: int | None
    reserved_memory_bytes: int | None
    memory_kind: str | None
    energy_joules: float | None
    energy_joules_per_image: float | None
    energy_kind: str | None
    co2_grams: float | None
    co2_grams_per_kwh: float
    pue: float


@dataclass(frozen=True)
class Spent:
    """cost: in whole units of each kind; price: what one unit takes on this engine; budget: as the user may write it.

    seconds: of the run, by this prompt's share in its evaluations; seconds_by: the same by phase ("denoise", "decode",
    "reward", "gradient"), empty where the engine takes no time; seconds_all_prompts: of the whole run. usage: memory,
    energy and CO2 (profiling/meter.py), energy by share. seeds: started; finished: images. gain_of_second_half: by how
    much the best finished image exceeds the best of half of them, None below four. calibration: what the engine spent
    before the search, on finding batch sizes and the like, which no budget pays. lost: what the engine
    computed in vain for all prompts, because a device broke down, which no budget pays either.
    """

    cost: Cost
    price: Price
    budget: str
    seconds: float = 0.0
    seconds_by: Mapping[str, float] = field(default_factory=dict)
    seconds_all_prompts: float = 0.0
    usage: Usage = field(default_factory=Usage)
    seeds: int = 0
    finished: int = 0
    gain_of_second_half: float | None = None
    calibration: Cost = field(default_factory=Cost)
    lost: Cost = field(default_factory=Cost)

    def __str__(self) -> str:
        """A line: what was spent, of which budget, on how many seeds and images."""
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.cost.counts().items())
        return f"{counts} of a budget of {self.budget}; {self.seeds} seeds started, {self.finished} finished"

    @property
    def nfe(self) -> int:
        """Denoiser evaluations."""
        return self.cost.nfe

    @property
    def forward_passes(self) -> int:
        """Forward passes of the networks: two an evaluation with classifier-free guidance, and those of drafts."""
        return self.cost.nfe * self.price.passes_per_nfe + self.cost.draft_calls * self.price.passes_per_draft

    @property
    def flops(self) -> float:
        """FLOPs in all."""
        return self.price.flops.of(self.cost)

    @property
    def flops_by(self) -> Mapping[Phase, float]:
        """FLOPs by phase; those of "gradient" are of backward passes alone."""
        return self.price.flops.by_phase(self.cost)

    @property
    def verifier_share(self) -> float | None:
        """The share of all but denoising in the seconds of all phases, in [0, 1]; None without times."""
        whole = sum(self.seconds_by.values())
        return 1 - self.seconds_by["denoise"] / whole if whole > 0 else None

    def to_json(self) -> dict[str, object]:
        """As files keep it (PNG metadata, results.json)."""
        counts, flops = self.cost.named(), self.flops_by
        return {
            "nfe": self.nfe,
            "forward_passes": self.forward_passes,
            **{name: counts[name] for name in NEWER if counts[name]},
            **{name: counts[name] for name in FORWARD},
            "flops": self.flops,
            "flops_denoise": flops["denoise"],
            "flops_decode": flops["decode"],
            "flops_reward": flops["reward"],
            **{name: counts[name] for name in BACKWARD},
            "flops_gradient": flops["gradient"],
            "budget": self.budget,
            "seconds": self.seconds,
            **{f"seconds_{phase}": seconds for phase, seconds in self.seconds_by.items()},
            "seconds_all_prompts": self.seconds_all_prompts,
            "verifier_share": self.verifier_share,
            **self.usage,
            "seeds": self.seeds,
            "finished": self.finished,
            "gain_of_second_half": self.gain_of_second_half,
            "calibration": self.calibration.counts(),
            **({"lost": self.lost.counts()} if self.lost != Cost() else {}),
        }
