"""The drafter that a model's folder names, and the searches that take it where nobody said anything of drafts.

A draft guesses where one sampler of one model ends, and was measured for one schedule of pruning. Elsewhere it is left
out: a search without drafts is never wrong, only dearer.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from ttsnap.pipelines.drafting.drafters import hooked
from ttsnap.pipelines.model_defaults import defaults_of
from ttsnap.pipelines.settings import adapters

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.needs import Need
from ttsnap.core.protocols import Algorithm
from ttsnap.files.reading import read_object
from ttsnap.options.model import EMBEDDED
from ttsnap.options.option import Spec, same
from ttsnap.options.sampler import SamplerOptions
from ttsnap.rewards.registry import suits_drafts
from ttsnap.sampling.drafts import DraftSettings, calls_of, read_draft
from ttsnap.scenes import draft_path

logger = logging.getLogger(__name__)
_SCALES = ("true_cfg_scale", "guidance_scale")
"""What a guided call names its guidance, that of two passes first."""


@dataclass(frozen=True)
class OwnDraft:
    """name: as `draft=` takes it. call: of the model's defaults, with the size that it has by itself."""

    name: str
    settings: DraftSettings
    call: Mapping[str, Any]

    def suits(self, algorithm: Algorithm, sampler: SamplerOptions, rewards: Spec, call: Mapping[str, Any]) -> bool:
        """Whether a search takes it by itself. call: complete, with the model's defaults.

        It does where the algorithm is the default pruning, or cannot do without drafts, the sampler is the pipeline's
        own, and draft.json says that the draft pays at these steps and this guidance; all else is as the model's folder
        has it.
        """
        if not (_drafts(algorithm) and sampler.stock and suits_drafts(rewards)):
            return False
        measured = ("num_inference_steps", *_SCALES)
        if not all(self._has(name, value) for name, value in call.items() if name not in measured):
            return False
        steps, scale = call.get(measured[0]), next((call[name] for name in _SCALES if name in call), None)
        return any((c.steps, c.guidance_scale) == (steps, scale) and c.pays for c in self.settings.checked)

    def _has(self, name: str, value: object) -> bool:
        """Whether an argument is as the model has it. None and "" say nothing; None is its own size, too."""
        default = self.call.get(name)
        nothing = (None,) if name in ("height", "width") else (None, "") if default in (None, "") else ()
        return same(value, default) or value in nothing


def drafting(
    pipe: Any, sampler: SamplerOptions, algorithm: Algorithm, rewards: Spec, call: Mapping[str, Any]
) -> SamplerOptions:
    """The sampler of a search with its drafter, where that was left open: the model's own, or None where that would not
    help. call: of the pipeline, complete."""
    if sampler.drafted_by(None) is sampler:
        return sampler
    own = own_draft(pipe)
    return sampler.drafted_by(own.name if own is not None and own.suits(algorithm, sampler, rewards, call) else None)


def warn_of_doubt(drafts: Any, model: str) -> None:
    """Log, once for a process, why the drafter of a denoiser may choose worse seeds. drafts: None for no drafter."""
    if drafts is not None and (doubt := drafts.doubt(model)) is not None:
        _warn_once(doubt)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def own_draft(pipe: Any) -> OwnDraft | None:
    """The drafter that the pipeline's folder names; None without one, and where the pipeline is no more as its folder
    has it: under a LoRA, with another network or scheduler, offloaded. ValueError for a damaged draft.json."""
    defaults = defaults_of(pipe)
    if defaults.draft is None or not pipe.can_draft or not pipe.name_or_path:
        return None
    folder = Path(pipe.name_or_path)
    network = getattr(pipe, type(pipe).denoiser_class.network)
    own = Path(str(network.config.get("_name_or_path"))).parent == folder and _own_scheduler(pipe.scheduler, folder)
    fused = isinstance(pipe, LoraBaseMixin) and pipe.num_fused_loras > 0
    if not own or fused or adapters(pipe) or hooked(pipe):
        return None
    where, _ = calls_of(defaults.draft)
    settings = read_draft(draft_path() if where == EMBEDDED else where)
    height, width = pipe.denoiser(**defaults.completed({}, pipe.call_arguments())).native_size(None, None)
    return OwnDraft(defaults.draft, settings, {"height": height, "width": width, **defaults.call})


def _drafts(algorithm: Algorithm) -> bool:
    """Whether it is the pruning for which drafts were measured to help, or needs some."""
    if Need.DRAFT in algorithm.needs:
        return True
    if not isinstance(algorithm, SeedPruning) or not algorithm.draft_share:
        return False
    return SeedPruning(draft_share=algorithm.draft_share, draft_calls=algorithm.draft_calls) == algorithm


def _own_scheduler(scheduler: Any, folder: Path) -> bool:
    file = folder / "scheduler" / "scheduler_config.json"
    saved = read_object(file) if file.is_file() else {}
    plain = {name: value for name, value in saved.items() if not name.startswith("_")}
    now = {name: list(v) if isinstance(v := scheduler.config.get(name), tuple) else v for name in plain}
    return saved.get("_class_name") == type(scheduler).__name__ and now == plain
