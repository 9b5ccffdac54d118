"""What a search pipeline returns: the stock output class with `search`, safety-checked and in the
form asked."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.outputs import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Reward
from ttsnap.core.results import Result
from ttsnap.files.pictured import source_of
from ttsnap.options.engine import EngineOptions
from ttsnap.results import outputs
from ttsnap.results.record import SearchRecord
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Shown, score_in_parts
from ttsnap.sampling.denoiser import Denoiser

Images: TypeAlias = "list[Image.Image] | NDArray[np.float32] | Tensor"
"""N images in one of the forms pil, pt, np and latent; an empty list where a search returned no image."""
Videos: TypeAlias = "list[list[Image.Image]] | NDArray[np.float32] | Tensor"
"""N videos in one of these forms."""


@dataclass
class ImagesOutput(BaseOutput):
    """The output of stock calls that have none of their own."""

    images: Images


@dataclass
class FramesOutput(BaseOutput):
    """The same of videos."""

    frames: Videos


@dataclass
class SoundOutput(BaseOutput):
    """The same of videos with sound; audio: (N, channels, samples), or None where no video was
    finished."""

    frames: Videos
    audio: Tensor | None


def stock_output(call: Callable[..., Any]) -> type[Any]:
    """The output class of images or frames that the code of a stock `__call__` names; ImagesOutput
    unless it names exactly one."""
    plain: Any = inspect.unwrap(call)
    named = [plain.__globals__.get(name) for name in plain.__code__.co_names]
    kinds: list[Any] = [c for c in named if isinstance(c, type) and issubclass(c, BaseOutput)]
    known = [
        kind for kind in kinds if {"images", "frames"} & {field.name for field in fields(kind)}
    ]
    return known[0] if len(known) == 1 else ImagesOutput


@functools.cache
def search_output(stock: Any) -> Any:
    """A subclass of a stock output class with one more field: `search`, a list of one Result per
    prompt."""
    made = made_field(stock)

    # pickle stores the stock class, since this one has no name in a module
    def reduce(self: Any) -> Any:
        return _restore, (stock, tuple(getattr(self, field.name) for field in fields(self)))

    def line(self: Any) -> str:
        more = [
            f"{field.name}={_short(getattr(self, field.name))}"
            for field in fields(stock)
            if field.name != made
        ]
        n = len(getattr(self, made))
        count = f"{n} {'image' if made == 'images' else 'video'}{'s' * (n != 1)}"
        return f"{type(self).__name__}({', '.join([count, *more, f'search={self.search}'])})"

    def page(self: Any) -> str:
        return "".join(result._repr_html_() for result in self.search or ())

    names = {"__module__": __name__, "__doc__": stock.__doc__, "__reduce__": reduce}
    names |= {"__repr__": line, "_repr_html_": page}
    kind = f"Search{stock.__name__}"
    columns = [("search", list[Result], None)]
    return make_dataclass(kind, columns, bases=(stock,), namespace=names, repr=False)


def _short(value: Any) -> str:
    return f"tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)


def _restore(stock: Any, values: Sequence[Any]) -> Any:
    return search_output(stock)(*values)


def made_field(stock: Any) -> str:
    """The field of a stock output class that holds what was made: "images", or "frames" where that
    is videos."""
    return "frames" if any(field.name == "frames" for field in fields(stock)) else "images"


def make_output(stock: Any, made: Images | Videos, results: list[Result], **known: Any) -> Any:
    """The search output over a stock class. `known`, by the names of its fields, is kept only if it
    has such a field: what the safety checker flagged, the sound of videos."""
    more = {
        field.name: known.get(field.name)
        for field in fields(stock)
        if field.name != made_field(stock)
    }
    return search_output(stock)(**{made_field(stock): made}, **more, search=results)


def checked(pipe: Any, results: list[Result]) -> tuple[list[Result], list[bool] | None]:
    """(results, flags): images that the safety checker flags are replaced by what it returns for
    them, usually black.

    flags: one bool per image, True where it was flagged; None where the pipeline has no safety
    checker or there are no images. Only final images are checked: to check every x0 estimate would
    cost much, and black ones would mislead the search.
    """
    shown, flags = judged(pipe, [c.pixels for result in results for c in result.images])
    if flags is None:
        return results, None
    rows = iter(shown)
    censored = [
        replace(
            result,
            images=tuple(replace(c, image=next(rows)) for c in result.images),
        )
        for result in results
    ]
    return censored, flags


def judged(pipe: Any, images: list[Tensor]) -> tuple[list[Tensor], list[bool] | None]:
    """(images, flags) as of `checked`, of images (3, H, W)."""
    checks = getattr(pipe, "safety_checker", None) is not None and hasattr(
        pipe, "run_safety_checker"
    )
    if not checks or not images:  # Cosmos has a checker that its own call runs
        return images, None
    dtype = getattr(pipe.safety_checker, "dtype", torch.float32)
    device = pipe._execution_device
    with torch.no_grad():
        seen, flags = pipe.run_safety_checker(2 * torch.stack(images).to(device) - 1, device, dtype)
    # Flagged images stay as the checker returned them, as in stock pipelines, which do not map them
    # to [0, 1] either.
    rows = zip(seen, images, flags, strict=True)
    return [torch.as_tensor(new).cpu().float() if flag else old for new, old, flag in rows], [
        bool(f) for f in flags
    ]


def sources_of(
    denoiser: Denoiser, prompts: Sequence[Prompt], metrics: Sequence[RewardModel]
) -> list[Tensor | None]:
    """What each of these prompts edits, (3, h, w), where one of these metrics needs it; on the CPU,
    as images are."""
    if not any("source" in metric.needs for metric in metrics):
        return [None] * len(prompts)
    denoiser.encode(prompts)
    return list(denoiser.sources(torch.arange(len(prompts))).cpu())


def reported(
    result: Result,
    metrics: Sequence[Reward],
    frames: int = EngineOptions.frames,
    source: Tensor | None = None,
    text: str | None = None,
) -> Result:
    """The result, each of its images scored by each metric; a metric that fails adds a warning
    instead.

    frames: how many of a video metrics of images see; source: (3, h, w), what the prompt edits,
    where one needs it; text: what rewards read of the prompt, where that is another text.
    """
    if not metrics or not result.images:
        return result
    images = torch.stack([c.pixels for c in result.images])
    n = len(images)
    shown = Shown(min(frames, images.shape[1]) if images.ndim > 4 else None)
    columns = {}
    failed = []
    for metric in map(make_reward, metrics):
        call = shown.by(metric, None if source is None else source[None])
        told = images.clone(), [result.prompt if text is None else text] * n, torch.zeros(n)
        columns[metric.name], error = score_in_parts(call, *told, metric.name)
        failed += [f"the reported {error}"] if error else []
    scored = [
        replace(c, metrics={name: float(column[i]) for name, column in columns.items()})
        for i, c in enumerate(result.images)
    ]
    return replace(result, images=tuple(scored), warnings=(*result.warnings, *failed))


def converted(
    made: list[Tensor], output_type: str, dtype: torch.dtype, device: torch.device
) -> Images | Videos:
    """Images or videos as "pil", "pt" or "np", in the forms that stock pipelines return: tensors as
    the VAE made them.

    Of videos these are, for "pil", a list of T pictures for each; else (N, T, H, W, 3) float32 and
    (N, T, 3, H, W).
    """
    if not made:
        return []
    if output_type == "pt":
        return torch.stack(made).to(device, dtype)
    moving = made[0].ndim > 3
    arrays = [VaeImageProcessor.pt_to_numpy(one if moving else one[None]) for one in made]
    if output_type == "np":
        return np.stack(arrays) if moving else np.concatenate(arrays)
    pictures = [VaeImageProcessor.numpy_to_pil(array) for array in arrays]
    return pictures if moving else [picture for (picture,) in pictures]


def joined(values: Sequence[Any]) -> Any:
    """What several calls returned in one field, as one value."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    return [row for value in values for row in value] if isinstance(first, list) else first


class FewerImages(UserWarning):
    """Some prompt has fewer images than were asked for."""


def with_thumbnails(
    results: Sequence[Result],
    thumbnails: Mapping[int, Mapping[tuple[int, int], Image.Image]],
    flags: Sequence[bool] | None,
) -> list[Result]:
    """Results with what was seen on the way, but for prompts of which the safety checker flagged an
    image, and for candidates that are refused in the end."""
    kept = []
    rest = iter(flags or ())
    for job, result in enumerate(results):
        flagged = list(itertools.islice(rest, len(result.images)))
        refused = result.particles.refused
        pictures = thumbnails.get(job, {})
        seen = {look: picture for look, picture in pictures.items() if not refused[look[0]]}
        kept.append(result if any(flagged) else replace(result, thumbnails=seen))
    return kept


def with_sources(results: Sequence[Result], calls: Sequence[Mapping[str, object]]) -> list[Result]:
    """Results with a small copy of the picture that each prompt's call changes, where it changes
    one."""
    pictures = [source_of(call) for call in calls]
    return [
        result if picture is None else replace(result, source=outputs.thumbnail(picture))
        for result, picture in zip(results, pictures, strict=True)
    ]


def label_images(made: Images | Videos, results: Sequence[Result], record: SearchRecord) -> None:
    """Let PIL images, and the first frame of each video, carry what made them in `info`.
    ttsnap.results.png_info and save_video write it into files."""
    rows = [
        (index, rank) for index, result in enumerate(results) for rank in range(len(result.images))
    ]
    for one, (index, rank) in zip(made, rows, strict=False):
        picture = one[0] if isinstance(one, list) else one
        record.of(results[index], rank, index).label(picture)


def warn_of_missing(results: Sequence[Result], keep: int) -> None:
    """A warning where a prompt has fewer images than were asked for, so that they cannot be told
    apart by counting."""
    missing = {
        i: len(result.images) for i, result in enumerate(results) if len(result.images) < keep
    }
    if missing:
        i, number = next(iter(missing.items()))
        prompts = f"{len(missing)} of {len(results)} prompts" if len(results) > 1 else "the prompt"
        warnings.warn(
            f"{prompts} came out with fewer images than the {keep} asked for ({number} of"
            f" {results[i].prompt!r}): out.search[i].images are those of prompt i,"
            " out.search[i].warnings say why; a larger budget finishes more",
            FewerImages,
            stacklevel=4,
        )


def tell(pipe: Any, call: Mapping[str, object], known: Mapping[str, inspect.Parameter]) -> None:
    """Leave on the pipeline what its stock call leaves there for others to read: guidance_scale,
    num_timesteps, ..."""
    values = {
        "current_timestep": None,
        **{name: parameter.default for name, parameter in known.items()},
        **call,
    }
    for name, _ in inspect.getmembers(type(pipe), lambda member: isinstance(member, property)):
        if name in values:
            vars(pipe)[f"_{name}"] = values[name]
