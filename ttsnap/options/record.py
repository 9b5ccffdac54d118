"""Settings of recordings, of schedules that are tuned on them, and of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttsnap.core.looks import Draft, EstimatorAt
from ttsnap.files.settings import Count, Json, Natural, Settings
from ttsnap.options.engine import Kept
from ttsnap.options.option import option


@dataclass(frozen=True)
class RecordOptions(Settings):
    """The settings of a recording, except for its prompts and the sampler."""

    seeds: Count = option(
        40, "seeds per prompt: --seed and those that follow it", metavar="N", common=True
    )
    seed: Natural = option(0, "the first seed", metavar="N")
    steps: Sequence[int] | None = option(
        None,
        "score the estimates at these steps only, as '[2, 6, 11]'; the finished image always",
        unset="all",
        written=list[int] | None,
        flag="score_steps",
        metavar="STEPS",
    )
    looks: Sequence[str] | None = option(
        None,
        'score the seeds by these looks as well, as \'["draft:1@0", "draft:2@0"]\': drafts of one'
        " and of two calls from the initial noise",
        unset="with --draft: a draft of the initial noise",
        written=list[str] | None,
        metavar="LOOKS",
    )
    images: bool = option(
        False, "keep the decoded estimates, too, as tar files of PNGs", common=True
    )
    latents: bool = option(
        False,
        "keep each estimate's latent; without --images they are for `ttsnap distill-draft`, and no"
        " two prompts share a seed",
    )
    block: tuple[int, int] | None = option(
        None,
        "(prompts, seeds) of one unit of work, that is, of one search call",
        unset="about four full batches",
        written=None,
    )

    @property
    def keep(self) -> tuple[Kept, ...]:
        """What the engine hands to listeners in addition to the decoded estimates, as in
        EngineOptions."""
        return ("latents",) if self.latents else ()

    def looks_of(self, draft_calls: int) -> tuple[str, ...]:
        """The looks that are recorded. draft_calls: of the drafter in a draft, 0 without a
        drafter."""
        if self.looks is not None:
            return tuple(str(EstimatorAt.read(text)) for text in self.looks)
        return (str(EstimatorAt(Draft(draft_calls).name, 0)),) if draft_calls else ()

    def noted(self) -> dict[str, Json]:
        """The entries of recording.json that do not depend on the model."""
        return {
            "seeds": self.seeds,
            "first_seed": self.seed,
            "images": self.images,
            "extras": list(self.keep),
        }


@dataclass(frozen=True)
class TuneOptions(Settings):
    """How a schedule is looked for."""

    trials: Count = option(400, "schedules to try")
    checks: Count = option(5, "most checks in a schedule")
    holdout: float = option(0.3, "share of the prompts to keep out of the fit")


@dataclass(frozen=True)
class BenchOptions(Settings):
    """The settings of `ttsnap bench` that other commands do not have.

    Raises ValueError for numbers below 1.
    """

    repeats: Count = option(
        1,
        "searches per prompt and algorithm, each with seeds of its own; each gives one image, so"
        " that GenEval's four images a prompt are 4",
        metavar="N",
        common=True,
    )
    together: Count | None = option(
        None,
        "prompts that are searched for at once, which share the denoiser's batches, and their"
        " budgets with --shared; an interruption costs at most the work on so many",
        unset="1, with --shared 16",
        metavar="N",
    )
    sheets: bool = option(
        False,
        "write a contact sheet of each search into its prompt's folder: what it scored, dropped and"
        " finished",
    )
