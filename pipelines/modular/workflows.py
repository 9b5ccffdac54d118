"""The workflows of modular pipelines that search can run, and what it must be told of each.

A workflow is chosen as diffusers chooses it: by which images a call gives. What is declared here is only what the
blocks do not say themselves: which field holds the initial noise, and how the fields of several rows become those of
one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsnap.pipelines.modular.conditions import Rule, alike, joined, pad

DRAWN, TAKEN_OUT = "drawn", "taken out"
"""Where the initial noise is, if no block names it: the latents as the first block makes them, or what is left of the
noised image without the image."""
TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING, EDITING = "text-to-image", "image-to-image", "inpainting", "editing"
CONTROLLED = "text-to-image with ControlNet"
TEXT_TO_VIDEO, IMAGE_TO_VIDEO = "text-to-video", "image-to-video"


@dataclass(frozen=True)
class Workflow:
    """One workflow of one pipeline class.

    name: what `get_workflow` calls it; None where the pipeline has no other. task: what it is for, in this toolkit's
    words. given: the arguments that choose it. network: the component that denoises. redraws: whether rows start from
    an image, noised, and not from noise alone. noise: the field with that noise; by default the latents as the first
    block makes them. by_seed: whether what a row is denoised under differs from seed to seed without that, since a VAE
    samples it. rules: how fields of rows are put together (conditions.py), where that is not `stack`. by_step: whether
    a block of the loop reads the step as a number, so that only rows of one step go together. scratch: fields that the
    loop itself makes, empty dicts that its blocks fill at every step. keeps: whether what lies outside of a mask stays
    as it is. holds_first_frame: whether the first frame of a video is that of the image, without noise, at every step.
    references: whether a list of images is that of one prompt, and not one image for each. experts: whether another
    network, `transformer_2`, denoises below the pipeline's boundary, so that only rows on one side of it go together.
    always_guided: whether its blocks fail without guidance. steps_in_float32: whether the loop hands the network's
    output to the scheduler in float32. frames_every: of videos, the pipeline's property that says how many frames one
    latent frame stands for. output: the field with what is made. ends_with: what the blocks after the loop are told, so
    that they make tensors. why_not: why search refuses it, where it does.
    """

    name: str | None
    task: str
    given: frozenset[str] = frozenset()
    network: str = "transformer"
    redraws: bool = False
    noise: str = DRAWN
    by_seed: bool = False
    rules: Mapping[str, Rule] = field(default_factory=dict)
    by_step: bool = False
    scratch: tuple[str, ...] = ()
    keeps: bool = False
    holds_first_frame: bool = False
    references: bool = False
    experts: bool = False
    always_guided: bool = False
    steps_in_float32: bool = False
    frames_every: str | None = None
    output: str = "images"
    ends_with: Mapping[str, Any] = field(default_factory=lambda: {"output_type": "pt"})
    why_not: str | None = None


IMAGE, MASKED = frozenset({"image"}), frozenset({"image", "mask_image"})
CONTROL, ENDS = frozenset({"control_image"}), frozenset({"image", "last_image"})
_FLUX = {"txt_ids": alike, "img_ids": alike}
_QWEN = {
    **dict.fromkeys(
        ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask"), pad
    ),
    **dict.fromkeys(("img_shapes", "txt_seq_lens", "negative_txt_seq_lens"), joined),
}
_MORE = ("additional_cond_kwargs",)
_WAN: dict[str, Any] = {
    "output": "videos",
    "frames_every": "vae_scale_factor_temporal",
    "always_guided": True,
    "steps_in_float32": True,
}
_LTX: dict[str, Any] = {"output": "videos", "frames_every": "vae_temporal_compression_ratio"}
_WITH_SOUND = (
    "it denoises the video together with its sound, and one candidate here is one tensor of latents; search "
    "WanModularPipeline or LTXModularPipeline, and make the winner's sound apart"
)
_Z_IMAGE = {"prompt_embeds": joined, "negative_prompt_embeds": joined}

WORKFLOWS: dict[str, tuple[Workflow, ...]] = {
    "StableDiffusionXLModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE, network="unet"),
        Workflow("image2image", IMAGE_TO_IMAGE, IMAGE, network="unet", redraws=True, noise=TAKEN_OUT),
        Workflow("inpainting", INPAINTING, MASKED, network="unet", redraws=True, noise="noise", keeps=True),
        Workflow("controlnet_text2image", CONTROLLED, CONTROL, network="unet", by_step=True),
    ),
    "StableDiffusion3ModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE),
        Workflow("image2image", IMAGE_TO_IMAGE, IMAGE, redraws=True),
    ),
    "FluxModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE, rules=_FLUX),
        Workflow("image2image", IMAGE_TO_IMAGE, IMAGE, redraws=True, rules=_FLUX),
    ),
    "FluxKontextModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE, rules=_FLUX),
        Workflow("image_conditioned", EDITING, IMAGE, rules=_FLUX),
    ),
    "Flux2KleinModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE),
        Workflow("image_conditioned", EDITING, IMAGE, references=True),
    ),
    "Flux2KleinBaseModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE),
        Workflow("image_conditioned", EDITING, IMAGE, references=True),
    ),
    "QwenImageModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE, rules=_QWEN, scratch=_MORE),
        Workflow("image2image", IMAGE_TO_IMAGE, IMAGE, redraws=True, rules=_QWEN, scratch=_MORE),
        Workflow(
            "inpainting",
            INPAINTING,
            MASKED,
            redraws=True,
            rules=_QWEN,
            scratch=_MORE,
            keeps=True,
            ends_with={"output_type": "pil", "mask_overlay_kwargs": {"output_type": "pt"}},
        ),
        Workflow("controlnet_text2image", CONTROLLED, CONTROL, rules=_QWEN, scratch=_MORE, by_seed=True, by_step=True),
    ),
    "QwenImageEditModularPipeline": (Workflow("image_conditioned", EDITING, IMAGE, rules=_QWEN, scratch=_MORE),),
    "QwenImageEditPlusModularPipeline": (Workflow(None, EDITING, IMAGE, rules=_QWEN, scratch=_MORE, references=True),),
    "ZImageModularPipeline": (
        Workflow("text2image", TEXT_TO_IMAGE, rules=_Z_IMAGE, steps_in_float32=True),
        Workflow("image2image", IMAGE_TO_IMAGE, IMAGE, redraws=True, rules=_Z_IMAGE, steps_in_float32=True),
    ),
    "WanModularPipeline": (Workflow(None, TEXT_TO_VIDEO, **_WAN),),
    "WanImage2VideoModularPipeline": (
        Workflow("image2video", IMAGE_TO_VIDEO, IMAGE, **_WAN),
        Workflow("flf2v", IMAGE_TO_VIDEO, ENDS, **_WAN),
    ),
    "Wan22ModularPipeline": (Workflow(None, TEXT_TO_VIDEO, experts=True, **_WAN),),
    "Wan22Image2VideoModularPipeline": (Workflow(None, IMAGE_TO_VIDEO, IMAGE, experts=True, **_WAN),),
    "LTXModularPipeline": (
        Workflow("text2video", TEXT_TO_VIDEO, **_LTX),
        Workflow("image2video", IMAGE_TO_VIDEO, IMAGE, by_seed=True, holds_first_frame=True, **_LTX),
    ),
    "LTX2ModularPipeline": (
        Workflow("text2video", TEXT_TO_VIDEO, why_not=_WITH_SOUND),
        Workflow("image2video", IMAGE_TO_VIDEO, IMAGE, why_not=_WITH_SOUND),
    ),
}
"""By the name of the pipeline class. The first workflow of a class is that of a call without images."""


def workflows_of(pipeline_class: str) -> tuple[Workflow, ...]:
    """Those of a modular pipeline class. ValueError where search runs none of them, with the classes that have some."""
    known = WORKFLOWS.get(pipeline_class, ())
    if not any(workflow.why_not is None for workflow in known):
        able = [name for name, workflows in WORKFLOWS.items() if any(each.why_not is None for each in workflows)]
        why = known[0].why_not if known else None
        raise ValueError(f"search does not support {pipeline_class}: {why}" if why is not None else
                         f"search does not support {pipeline_class} yet; supported are {', '.join(able)}")  # fmt: skip
    return known


def workflow_for(pipeline_class: str, call: Mapping[str, Any]) -> Workflow:
    """The workflow that a call with these arguments runs. ValueError for one that is not supported, with what is."""
    known = workflows_of(pipeline_class)
    given = _images(known, call)
    fitting = [workflow for workflow in known if workflow.given == given]
    if not fitting:
        ways = "; ".join(", ".join(sorted(each.given)) or "no image" for each in known)
        raise ValueError(
            f"{pipeline_class} has no workflow for a call with {', '.join(sorted(given))}; give one of: {ways}"
        )
    if fitting[0].why_not is not None:
        raise ValueError(f"search cannot run {fitting[0].task} by {pipeline_class}: {fitting[0].why_not}")
    return fitting[0]


def _images(known: Collection[Workflow], call: Mapping[str, Any]) -> frozenset[str]:
    """The arguments of a call that choose among workflows."""
    choosing = frozenset[str]().union(*(workflow.given for workflow in known))
    return frozenset(name for name in choosing if call.get(name) is not None)
