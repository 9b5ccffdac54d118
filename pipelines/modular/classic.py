"""Classic pipelines, which people load, as modular ones over the same parts."""

from __future__ import annotations

from typing import Any

import diffusers
from ttsnap.pipelines.modular.guiders import unwarned
from ttsnap.pipelines.modular.pipeline import modular_search_class
from ttsnap.pipelines.modular.workflows import workflows_of
from ttsnap.pipelines.twins import copied

MODULAR: dict[str, str] = {
    **dict.fromkeys(
        (
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
        ),
        "StableDiffusionXLModularPipeline",
    ),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "StableDiffusion3ModularPipeline"),
    **dict.fromkeys(("FluxPipeline", "FluxImg2ImgPipeline"), "FluxModularPipeline"),
    "FluxKontextPipeline": "FluxKontextModularPipeline",
    "Flux2Pipeline": "Flux2ModularPipeline",
    "Flux2KleinPipeline": "Flux2KleinModularPipeline",
    **dict.fromkeys(
        (
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
        ),
        "QwenImageModularPipeline",
    ),
    "QwenImageEditPipeline": "QwenImageEditModularPipeline",
    "QwenImageEditPlusPipeline": "QwenImageEditPlusModularPipeline",
    **dict.fromkeys(("ZImagePipeline", "ZImageImg2ImgPipeline"), "ZImageModularPipeline"),
    "WanPipeline": "WanModularPipeline",
    "WanImageToVideoPipeline": "WanImage2VideoModularPipeline",
    **dict.fromkeys(("LTXPipeline", "LTXImageToVideoPipeline"), "LTXModularPipeline"),
    **dict.fromkeys(("LTX2Pipeline", "LTX2ImageToVideoPipeline"), "LTX2ModularPipeline"),
}
"""The modular pipeline that has the workflows of a classic one, by the names of the classes."""


EXPERTS = {
    "WanModularPipeline": "Wan22ModularPipeline",
    "WanImage2VideoModularPipeline": "Wan22Image2VideoModularPipeline",
}
"""The modular pipeline in place of another where a boundary parts the steps among two networks."""


def tasks_of(classic: str) -> tuple[str, ...]:
    """What the modular pipeline of a classic class can do; nothing where there is none."""
    if classic not in MODULAR:
        return ()
    return tuple(dict.fromkeys(each.task for each in workflows_of(MODULAR[classic]) if each.why_not is None))


def check_task(classic: str, task: str | None) -> None:
    """ValueError where no modular pipeline does this with the parts of a classic one, with what they do, and with what
    does it."""
    tasks = tasks_of(classic)
    if tasks and (task is None or task in tasks):
        return
    can = f"it can be used for {', '.join(tasks)}; " if tasks else ""
    able = [name for name in MODULAR if task is None or task in tasks_of(name)]
    raise ValueError(f"no modular pipeline does {task or 'anything'} with the parts of a {classic}; {can}there are "
                     f"{', '.join(able)} for {task or 'that'}")  # fmt: skip


def modular(pipe: Any, task: str | None = None) -> Any:
    """The modular search pipeline over the parts of a classic pipeline, which stays as it is.

    task: what it is to do, if that has to be sure. ValueError where no modular pipeline does it, with what they do.
    """
    name = type(pipe).__name__
    check_task(name, task)
    if pipe.config.get("expand_timesteps"):
        raise ValueError(f"search does not support this {name}: it denoises the frame that is given at a time of its "
                         "own (expand_timesteps, as Wan 2.2 TI2V does), and modular blocks do not; take Wan 2.1, or "
                         "2.2 A14B")  # fmt: skip
    with unwarned():
        made = getattr(diffusers, _modular_class(pipe))()
    parts = {part: value for part, value in pipe.components.items() if part in made.components and value is not None}
    boundary = pipe.config.get("boundary_ratio")
    made.update_components(**parts, **({} if boundary is None else {"boundary_ratio": boundary}))
    made._pretrained_model_name_or_path = pipe.name_or_path or None
    kind: Any = type(made)
    return copied(made, modular_search_class(kind))


def _modular_class(pipe: Any) -> str:
    """The class that its settings ask for: FLUX.2 klein comes distilled, and as a base model that is guided, Wan with
    one network or two."""
    name = MODULAR[type(pipe).__name__]
    if pipe.config.get("boundary_ratio") is not None:
        return EXPERTS[name]
    base = name == "Flux2KleinModularPipeline" and not pipe.config.get("is_distilled", False)
    return "Flux2KleinBaseModularPipeline" if base else name
