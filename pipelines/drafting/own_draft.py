"""The drafter that a model's folder names, and the searches that take it by default.

A draft guesses where one sampler of one model ends, and was measured for one schedule of pruning.
Other searches leave it out: without drafts they are as good, and cost more.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.needs import Need
from ttsnap.core.protocols import Algorithm
from ttsnap.files.reading import read_object
from ttsnap.options.option import Spec, same
from ttsnap.options.sampler import AUTO, DRAFT, NOISE, SamplerOptions, calls_of
from ttsnap.pipelines.calls.stock_call import SCALES
from ttsnap.pipelines.drafting.drafters import make_drafter
from ttsnap.pipelines.model_defaults import defaults_of
from ttsnap.pipelines.packaged import draft_folder
from ttsnap.pipelines.pipeline_copy import hooked
from ttsnap.pipelines.record import adapters
from ttsnap.reward_models.registry import suits_drafts
from ttsnap.sampling.drafts import Checked, DraftSettings, read_draft

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)
_STEPS = "num_inference_steps"


@dataclass(frozen=True)
class OwnDraft:
    """The drafter of a model's folder."""

    name: str
    """As `draft=` takes it."""
    settings: DraftSettings
    call: Mapping[str, Any]
    """The model's default arguments, with its native size."""

    def suits(
        self, algorithm: Algorithm, sampler: SamplerOptions, rewards: Spec, call: Mapping[str, Any]
    ) -> bool:
        """Whether a search takes it by default. call: complete, with the model's defaults.

        The algorithm is the default pruning or needs drafts, and the sampler is the pipeline's own.
        By draft.json the draft pays at these steps and this guidance. Other arguments have the
        model's defaults.
        """
        if not (_drafts(algorithm) and sampler.stock and suits_drafts(rewards)):
            return False
        measured = (_STEPS, *SCALES)
        if not all(self._has(name, value) for name, value in call.items() if name not in measured):
            return False
        return (found := checked_at(self.settings, call)) is not None and found.pays

    def drafted(
        self, algorithm: Algorithm, sampler: SamplerOptions, rewards: Spec, call: Mapping[str, Any]
    ) -> SamplerOptions:
        """A sampler without a drafter, with this one where it `suits` or its drafts are to be
        finished."""
        if not sampler.finishes and not self.suits(algorithm, sampler, rewards, call):
            return sampler
        drafted = replace(sampler, draft=self.name)
        return (
            finishing(drafted, self.settings, call) if sampler.finish in (AUTO, DRAFT) else drafted
        )

    def _has(self, name: str, value: object) -> bool:
        """Whether an argument has the model's default. None and "" are no value, and a size of None
        is native."""
        default = self.call.get(name)
        nothing = (
            (None,) if name in ("height", "width") else (None, "") if default in (None, "") else ()
        )
        return same(value, default) or value in nothing


def checked_at(settings: DraftSettings, call: Mapping[str, Any]) -> Checked | None:
    """What was measured of a drafter at the steps and the guidance of a call."""
    steps = call.get(_STEPS)
    scale = next((call[name] for name in SCALES if name in call), None)
    return next(
        (c for c in settings.checked if (c.steps, c.guidance_scale) == (steps, scale)), None
    )


def drafting(
    pipe: Any, algorithm: Algorithm, sampler: SamplerOptions, rewards: Spec, call: Mapping[str, Any]
) -> SamplerOptions:
    """The sampler of a search with its drafter, and what of a draft is finished. A drafter that was
    left open is the model's own, where it `suits` or its drafts are to be finished, or None. call:
    of the pipeline, complete.

    ValueError where drafts are to be finished and there is no drafter.
    """
    if sampler.left_open and (own := own_draft(pipe)) is not None:
        sampler = own.drafted(algorithm, sampler.drafted_by(None), rewards, call)
    sampler = sampler.drafted_by(None)
    if sampler.draft is None and sampler.finishes:
        raise ValueError(
            f"finish {sampler.finish} is for drafts, and there is no drafter; name one: --draft"
            " FOLDER, draft='FOLDER'"
        )
    if not isinstance(sampler.draft, str) or sampler.finish not in (AUTO, DRAFT):
        return sampler
    return finishing(
        sampler, make_drafter(pipe, pipe.denoising_network(), sampler.draft).settings, call
    )


def finishing(
    sampler: SamplerOptions, settings: DraftSettings, call: Mapping[str, Any]
) -> SamplerOptions:
    """The sampler with the level to finish from, by the settings of its drafter, where that was
    left to them."""
    if sampler.finish == DRAFT:
        return replace(sampler, finish=settings.finish or DRAFT)
    there = checked_at(settings, call)
    return replace(sampler, finish=(there.finish if there is not None else "") or NOISE)


def warn_of_doubt(drafts: Any, model: str) -> None:
    """Log, once in a process, why the drafts of a denoiser, if any, may choose worse seeds."""
    if drafts is not None and (doubt := drafts.doubt(model)) is not None:
        _warn_once("%s", doubt)


def own_draft(pipe: Any) -> OwnDraft | None:
    """The drafter that the pipeline's folder names. None for a pipeline that differs from its
    folder: with a LoRA, another class, network or scheduler, or offloading. ValueError for a
    damaged draft.json."""
    defaults = defaults_of(pipe)
    if defaults.draft is None or not pipe.name_or_path:
        return None
    folder = Path(pipe.name_or_path)
    network = getattr(pipe, pipe.denoising_network())
    own = Path(str(network.config.get("_name_or_path"))).parent == folder and _own_scheduler(
        pipe.scheduler, folder
    )
    fused = isinstance(pipe, LoraBaseMixin) and pipe.num_fused_loras > 0
    own = (
        own
        and read_object(folder / "model_index.json").get("_class_name")
        == pipe.stock_class().__name__
    )
    if not own or fused or adapters(pipe) or hooked(pipe):
        return None
    where, _ = calls_of(defaults.draft)
    settings = read_draft(draft_folder(pipe, where))
    own_call = pipe.denoiser(**defaults.completed({}))
    size = {"height": own_call.height, "width": own_call.width}
    return OwnDraft(defaults.draft, settings, {**size, **defaults.call})


def _drafts(algorithm: Algorithm) -> bool:
    """Whether it needs drafts, or is the pruning for which they were measured to help."""
    if Need.DRAFT in algorithm.needs:
        return True
    if not isinstance(algorithm, SeedPruning) or algorithm.draft_share == 0:
        return False
    return (
        SeedPruning(draft_share=algorithm.draft_share, draft_calls=algorithm.draft_calls)
        == algorithm
    )


def _own_scheduler(scheduler: Any, folder: Path) -> bool:
    file = folder / "scheduler" / "scheduler_config.json"
    saved = read_object(file) if file.is_file() else {}
    plain = {name: value for name, value in saved.items() if not name.startswith("_")}
    now = {
        name: list(v) if isinstance(v := scheduler.config.get(name), tuple) else v for name in plain
    }
    return saved.get("_class_name") == type(scheduler).__name__ and now == plain
