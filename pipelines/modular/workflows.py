"""The workflows of modular pipelines that search can run.

A workflow is chosen as in diffusers: by the images that a call gives. Only what the blocks do not say themselves is
declared here: which field holds the initial noise, and how the fields of several rows become one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import diffusers

from ttsnap.extras import install
from ttsnap.options.model import TASKS
from ttsnap.pipelines.modular.conditions import Rule, alike, joined, pad
from ttsnap.pipelines.modular.streams import ONE, WITH_SOUND, Streams

DRAWN, TAKEN_OUT = "drawn", "taken out"
"""Where the initial noise is, if no block names it. DRAWN: the latents as the first block makes them. TAKEN_OUT: the
noised image less the image."""
ANY, ONE_STEP, ONE_EXPERT = "any rows", "rows of one step", "rows of one expert"
"""Which rows may go through the blocks of the loop together."""
TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING, EDITING, CONTROLLED, TEXT_TO_VIDEO, IMAGE_TO_VIDEO = TASKS


@dataclass(frozen=True)
class Workflow:
    """One workflow of one pipeline class."""

    task: str
    """What it is for: one of TASKS."""
    given: frozenset[str] = frozenset()
    """The arguments that choose it."""
    network: str = "transformer"
    """The component that denoises."""
    latents: Streams = ONE
    """The fields of the loop that a row is made of (streams.py)."""
    redraws: bool = False
    """Whether rows start from a noised image, in place of noise alone."""
    noise: str = DRAWN
    """The field with the initial noise, or DRAWN or TAKEN_OUT."""
    by_seed: bool = False
    """Whether a row's condition differs from seed to seed though it redraws nothing, as where a VAE samples it."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """How fields of several rows become one batch (conditions.py), where not by `stack`."""
    together: str = ANY
    """Which rows may share a batch. ONE_STEP: a block reads the step as a number. ONE_EXPERT: another network,
    `transformer_2`, denoises below the pipeline's boundary."""
    scratch: tuple[str, ...] = ()
    """Fields that the loop makes: empty dicts, which its blocks fill at every step."""
    keeps: str | None = None
    """What stays as in the image: "mask", what lies outside of it, or "first frame" of a video, which has no noise."""
    references: bool = False
    """Whether a list of images is for one prompt, in place of one image for each."""
    always_guided: bool = False
    """Whether its blocks fail without guidance."""
    scale_from_zero: bool = False
    """Whether a guidance_scale of 0 is no guidance, as in the classic pipeline; elsewhere 1 is."""
    unread: tuple[str, ...] = ()
    """Inputs that its blocks take and do not use."""
    steps_in_float32: bool = False
    """Whether the loop passes the network's output to the scheduler in float32."""
    frames_every: str | None = None
    """The pipeline's property with the frames of a video that one latent frame stands for; None for images."""
    ends_with: Mapping[str, Any] = field(default_factory=lambda: {"output_type": "pt"})
    """Arguments of the blocks after the loop with which they make tensors."""
    why_not: str | None = None
    """Why search refuses it, where it does."""

    @property
    def output(self) -> str:
        """The field with the images or videos."""
        return "images" if self.frames_every is None else "videos"


IMAGE, MASKED = frozenset({"image"}), frozenset({"image", "mask_image"})
CONTROL, ENDS = frozenset({"control_image"}), frozenset({"image", "last_image"})
_FLUX: dict[str, Any] = {"rules": {"txt_ids": alike, "img_ids": alike}, "unread": ("prompt_2",)}
_QWEN = {
    **dict.fromkeys(
        ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask"), pad
    ),
    **dict.fromkeys(("img_shapes", "txt_seq_lens", "negative_txt_seq_lens"), joined),
}
_MORE = ("additional_cond_kwargs",)
_WAN: dict[str, Any] = {
    "frames_every": "vae_scale_factor_temporal",
    "always_guided": True,
    "steps_in_float32": True,
}
_LTX: dict[str, Any] = {"frames_every": "vae_temporal_compression_ratio"}
_LTX2: dict[str, Any] = {**_LTX, "latents": WITH_SOUND, "together": ONE_STEP}
_DRAWS = (
    "its decoder is a diffusion model that draws noise, so that an estimate would differ from the video that it stands "
    "for; make a LTX2ModularPipeline of its parts where it has a VAE as well"
)
_Z_IMAGE: dict[str, Any] = {
    "rules": {"prompt_embeds": joined, "negative_prompt_embeds": joined},
    "scale_from_zero": True,
    "steps_in_float32": True,
}

WORKFLOWS: dict[str, tuple[Workflow, ...]] = {
    "StableDiffusionXLModularPipeline": (
        Workflow(TEXT_TO_IMAGE, network="unet"),
        Workflow(IMAGE_TO_IMAGE, IMAGE, network="unet", redraws=True, noise=TAKEN_OUT),
        Workflow(INPAINTING, MASKED, network="unet", redraws=True, noise="noise", keeps="mask"),
        Workflow(CONTROLLED, CONTROL, network="unet", together=ONE_STEP),
    ),
    "StableDiffusion3ModularPipeline": (
        Workflow(TEXT_TO_IMAGE),
        Workflow(IMAGE_TO_IMAGE, IMAGE, redraws=True),
    ),
    "FluxModularPipeline": (
        Workflow(TEXT_TO_IMAGE, **_FLUX),
        Workflow(IMAGE_TO_IMAGE, IMAGE, redraws=True, **_FLUX),
    ),
    "FluxKontextModularPipeline": (
        Workflow(TEXT_TO_IMAGE, **_FLUX),
        Workflow(EDITING, IMAGE, **_FLUX),
    ),
    "Flux2ModularPipeline": (
        Workflow(TEXT_TO_IMAGE),
        Workflow(EDITING, IMAGE, references=True),
    ),
    "Flux2KleinModularPipeline": (
        Workflow(TEXT_TO_IMAGE),
        Workflow(EDITING, IMAGE, references=True),
    ),
    "Flux2KleinBaseModularPipeline": (
        Workflow(TEXT_TO_IMAGE),
        Workflow(EDITING, IMAGE, references=True),
    ),
    "QwenImageModularPipeline": (
        Workflow(TEXT_TO_IMAGE, rules=_QWEN, scratch=_MORE),
        Workflow(IMAGE_TO_IMAGE, IMAGE, redraws=True, rules=_QWEN, scratch=_MORE),
        Workflow(
            INPAINTING,
            MASKED,
            redraws=True,
            rules=_QWEN,
            scratch=_MORE,
            keeps="mask",
            ends_with={"output_type": "pil", "mask_overlay_kwargs": {"output_type": "pt"}},
        ),
        Workflow(CONTROLLED, CONTROL, rules=_QWEN, scratch=_MORE, by_seed=True, together=ONE_STEP),
    ),
    "QwenImageEditModularPipeline": (Workflow(EDITING, IMAGE, rules=_QWEN, scratch=_MORE),),
    "QwenImageEditPlusModularPipeline": (Workflow(EDITING, IMAGE, rules=_QWEN, scratch=_MORE, references=True),),
    "ZImageModularPipeline": (
        Workflow(TEXT_TO_IMAGE, **_Z_IMAGE),
        Workflow(IMAGE_TO_IMAGE, IMAGE, redraws=True, **_Z_IMAGE),
    ),
    "WanModularPipeline": (Workflow(TEXT_TO_VIDEO, **_WAN),),
    "WanImage2VideoModularPipeline": (
        Workflow(IMAGE_TO_VIDEO, IMAGE, **_WAN),
        Workflow(IMAGE_TO_VIDEO, ENDS, **_WAN),
    ),
    "Wan22ModularPipeline": (Workflow(TEXT_TO_VIDEO, together=ONE_EXPERT, **_WAN),),
    "Wan22Image2VideoModularPipeline": (Workflow(IMAGE_TO_VIDEO, IMAGE, together=ONE_EXPERT, **_WAN),),
    "LTXModularPipeline": (
        Workflow(TEXT_TO_VIDEO, **_LTX),
        Workflow(IMAGE_TO_VIDEO, IMAGE, by_seed=True, keeps="first frame", **_LTX),
    ),
    "LTX2ModularPipeline": (
        Workflow(TEXT_TO_VIDEO, **_LTX2),
        Workflow(IMAGE_TO_VIDEO, IMAGE, keeps="first frame", **_LTX2),
    ),
    "LTX25ModularPipeline": (
        Workflow(TEXT_TO_VIDEO, why_not=_DRAWS),
        Workflow(IMAGE_TO_VIDEO, IMAGE, why_not=_DRAWS),
    ),
}
"""By the name of the pipeline class. The first workflow of a class is that of a call without images."""


def workflows_of(pipeline_class: str) -> tuple[Workflow, ...]:
    """The workflows of a modular pipeline class. ValueError where search runs none of them."""
    known = WORKFLOWS.get(pipeline_class, ())
    if not any(workflow.why_not is None for workflow in known):
        able = [name for name, workflows in WORKFLOWS.items() if any(each.why_not is None for each in workflows)]
        why = known[0].why_not if known else None
        raise ValueError(f"search does not support {pipeline_class}: {why}" if why is not None else
                         f"search does not support {pipeline_class} yet; supported are {', '.join(able)}")  # fmt: skip
    return known


def workflow_for(pipeline_class: str, call: Mapping[str, Any]) -> Workflow:
    """The workflow that a call with these arguments runs. ValueError for one that search does not support."""
    known = workflows_of(pipeline_class)
    choosing = frozenset[str]().union(*(workflow.given for workflow in known))
    given = frozenset(name for name in choosing if call.get(name) is not None)
    fitting = [workflow for workflow in known if workflow.given == given]
    if not fitting:
        ways = "; ".join(", ".join(sorted(each.given)) or "no image" for each in known)
        raise ValueError(
            f"{pipeline_class} has no workflow for a call with {', '.join(sorted(given))}; give one of: {ways}"
        )
    if fitting[0].why_not is not None:
        raise ValueError(f"search cannot run {fitting[0].task} by {pipeline_class}: {fitting[0].why_not}")
    return fitting[0]


def listed_for_prompts(workflow: Workflow, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that are lists with an entry for each prompt: texts, and pictures that are not
    `references`, also as tensors and arrays (N, ...) of more than one."""
    of_each = {name for name in call if "prompt" in name} | workflow.given
    of_each -= {"image"} if workflow.references else set()
    found = {}
    for name, value in call.items():
        if name not in of_each:
            continue
        if isinstance(value, list | tuple):
            found[name] = value
        elif getattr(value, "ndim", 0) == 4 and len(value) > 1:
            found[name] = [value[i : i + 1] for i in range(len(value))]
    return found


def check_lists(workflow: Workflow, pipeline_class: str, call: Mapping[str, Any]) -> None:
    """ValueError for lists where the workflow of this class takes one picture, or text, for a prompt."""
    for name, values in listed_for_prompts(workflow, call).items():
        raise ValueError(f"{workflow.task} by {pipeline_class} takes one {name} for each prompt, got {len(values)}")


def check_installed(pipeline_class: str) -> None:
    """ValueError that says what to install where the blocks of a class need a package that diffusers does without."""
    if pipeline_class.startswith("Wan") and find_spec("ftfy") is None:
        raise ValueError(f"{pipeline_class} cleans prompts by ftfy, which is missing: {install('video')}")


TESTED = ("0.42", "0.43")
"""The first version of diffusers that was tested, and the first that was not."""


def check_version(version: str = diffusers.__version__) -> None:
    """ValueError for a version of diffusers whose blocks were not tested."""
    first, end = (_numbers(text) for text in TESTED)
    if not first <= _numbers(version) < end:
        raise ValueError(f"searches over modular pipelines were tested with diffusers {TESTED[0]} and later, before "
                         f"{TESTED[1]}, and this is {version}, whose blocks may differ: pip install "
                         f"'diffusers>={TESTED[0]},<{TESTED[1]}'")  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
