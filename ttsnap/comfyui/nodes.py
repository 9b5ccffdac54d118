# mypy: allow-subclassing-any
"""Nodes for ComfyUI, which alone imports this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import nodes
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io
from PIL import Image
from torch import Tensor

from ttsnap.comfyui import inputs
from ttsnap.comfyui.board import Board
from ttsnap.comfyui.inputs import KERNELS, USUAL, Weighted
from ttsnap.loop.budget import Budget
from ttsnap.pipelines.comfyui.latents import GuiderDrafter, LatentSearch
from ttsnap.request.offer import SearchFields
from ttsnap.request.searches import OFFERED
from ttsnap.reward_models.registry import make_reward

REWARD, BUDGET, DRAFTER = (io.Custom(f"TTSNAP_{name}") for name in ("REWARD", "BUDGET", "DRAFTER"))
KINDS = {"MODEL": io.Model, "CONDITIONING": io.Conditioning, "LATENT": io.Latent, "INT": io.Int, "FLOAT": io.Float}
SAMPLERS = [*(name for name in comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"), *KERNELS]
Drafts = Callable[[Callable[[Any, float], Any]], GuiderDrafter]
"""Makes a drafter, given what makes a guider of a MODEL and its guidance."""
RETURN = "return the best so far"
SIZE = "downscale_ratio_spacial"
"""What newer versions note in an empty latent until it has been sampled."""


def of_ksampler(*names: str) -> list[Any]:
    """Inputs as KSampler declares them, with its tooltips."""
    stock = nodes.KSampler.INPUT_TYPES()["required"]
    return [KINDS[stock[name][0]].Input(name, **stock[name][1]) for name in names]


class Progress:
    """Shows progress on the node that runs, and hears that the user has cancelled.

    returns: whether the search then ends with its best image. A second time it is stopped even so.
    """

    def __init__(self, *, returns: bool) -> None:
        self.bar, self.returns, self.cancelled = ProgressBar(1), returns, False

    def show(self, value: float, total: float, grid: Image.Image | None) -> None:
        try:
            self.bar.update_absolute(value, total, None if grid is None else ("JPEG", grid, None))
        except model_management.InterruptProcessingException:
            if not self.returns or self.cancelled:
                raise
            self.cancelled = True

    def should_stop(self) -> bool:
        if model_management.processing_interrupted() and not self.cancelled:
            model_management.interrupt_current_processing(False)
            self.cancelled = True
        return self.cancelled


class SearchSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapSearchSampler", "Search Sampler", "ttsnap", [
            *of_ksampler("model", "positive", "negative", "latent_image"),
            io.Vae.Input("vae", tooltip="Decodes what rewards look at."),
            REWARD.Input("reward", tooltip="What scores images."),
            BUDGET.Input("budget", optional=True,
                         tooltip=f"How much to spend. Without it, what {USUAL.images:g} images take."),
            DRAFTER.Input("drafter", optional=True, tooltip="A fast model that says which seeds are worth denoising."),
            io.String.Input("prompt", multiline=True, tooltip="The text that rewards read. The model does not."),
            *of_ksampler("seed", "steps", "cfg"),
            io.Combo.Input("sampler_name", SAMPLERS, tooltip="As in KSampler, or a sampler of ttsnap, for algorithms "
                           "that make several candidates of one in mid-course."),
            io.Combo.Input("scheduler", comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
            *of_ksampler("denoise"),
            io.Combo.Input("algorithm", list(OFFERED), default=SearchFields.search, tooltip="How the budget is spent. "
                           "seed-pruning begins many seeds, and finishes those that rewards like early."),
            io.Int.Input("keep", default=1, min=1, max=64, tooltip="How many images come out, best first."),
            io.String.Input("options", optional=True, default="", placeholder='{"n": 20}',
                            tooltip="Options of the algorithm as JSON, as `ttsnap algorithms` lists them."),
            io.Int.Input("batch_size", optional=True, default=0, min=0, max=256,
                         tooltip="Most candidates in one call of the model; 0 for as many as memory allows."),
            io.Combo.Input("previews", ["vae", "previewer"], optional=True,
                           tooltip="What decodes unfinished images for rewards: the VAE, or ComfyUI's fast previewer."),
            io.Combo.Input("on_cancel", ["stop", RETURN], optional=True,
                           tooltip="When you cancel: stop everything, or go on with the best images found so far."),
        ], [
            io.Latent.Output(display_name="latent", tooltip="The latents of the images, best first."),
            io.Image.Output(display_name="images", tooltip="The images, best first."),
            io.Int.Output(display_name="seeds", is_output_list=True, tooltip="The seed of each image."),
            io.Float.Output(display_name="scores", is_output_list=True, tooltip="The score of each image."),
            io.String.Output(display_name="report", tooltip="What was found and spent."),
        ], description="As KSampler, but for many seeds: rewards say which of them are worth finishing.")  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent_image: dict[str, Any], vae: Any,
        reward: tuple[Weighted, ...], prompt: str, seed: int, steps: int, cfg: float, sampler_name: str,
        scheduler: str, denoise: float, algorithm: str, keep: int, budget: Budget | None = None,
        drafter: Drafts | None = None, options: str = "", batch_size: int = 0, previews: str = "vae",
        on_cancel: str = "stop",
    ) -> io.NodeOutput:  # fmt: skip
        request = inputs.request_of(prompt, reward, sampler_name, algorithm, options, budget, seed, keep, batch_size)
        name = "euler" if sampler_name in KERNELS else sampler_name
        how = comfy.samplers.KSampler(model, steps, model.load_device, name, scheduler, denoise, model.model_options)
        empty = [latent_image[SIZE]] if SIZE in latent_image else []
        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], *empty)

        def guider(of: Any, scale: float) -> Any:
            made = comfy.samplers.CFGGuider(of)
            made.set_conds(positive, negative)
            made.set_cfg(scale)
            return made

        previewer, progress = None, Progress(returns=on_cancel == RETURN)
        if previews == "previewer":
            previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
            if previewer is None:
                raise ValueError("ComfyUI has no previewer for this model; start it with --preview-method auto, "
                                 "or choose vae")  # fmt: skip
        found = LatentSearch(
            request, guider(model, cfg), comfy.samplers.sampler_object(name), how.sigmas, latent, vae,
            latent_image.get("noise_mask"), drafter and drafter(guider), previewer,
        ).run(
            lambda grid: Board(grid, request.spec, progress.show), progress.should_stop if progress.returns else None
        )  # fmt: skip
        images, stock = found.result.images, sampler_name not in KERNELS and "batch_index" not in latent_image
        made = {key: value for key, value in latent_image.items() if key not in ("batch_index", SIZE)}
        return io.NodeOutput(
            {**made, "samples": found.latents},
            inputs.frames(images),
            [image.seed for image in images],
            [image.reward for image in images],
            inputs.reported(found.result, request.label, stock=stock),
        )


class Reward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapReward", "Reward", "ttsnap", [
            io.Combo.Input("name", inputs.OFFERED, default="pickscore", tooltip="Its weights are downloaded once."),
            io.Float.Input("weight", default=1.0, min=-1000.0, max=1000.0, step=0.1, round=0.001,
                           tooltip="What its scores are multiplied by; below 0 where they should be low."),
            io.Combo.Input("device", ["auto", "cpu"], tooltip="Where it runs: where models do, or on the CPU."),
            REWARD.Input("more", optional=True, tooltip="Further rewards, whose scores are added."),
        ], [REWARD.Output(display_name="reward")],
            description="What scores images. Connect several in a chain for their weighted sum.")  # fmt: skip

    @classmethod
    def execute(cls, name: str, weight: float, device: str, more: tuple[Weighted, ...] = ()) -> io.NodeOutput:
        made = make_reward(name, device="cpu" if device == "cpu" else model_management.get_torch_device())
        return io.NodeOutput((*more, Weighted(made, weight)))


class SearchBudget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapBudget", "Budget", "ttsnap", [
            io.Float.Input("images", default=USUAL.images, min=0.0, max=10000.0, step=1.0, round=0.01,
                           tooltip="Evaluations of the model, as many as so many images take."),
            io.Int.Input("evaluations", default=0, min=0, max=10**9, tooltip="Evaluations of the model."),
            io.Int.Input("decodes", default=0, min=0, max=10**9, tooltip="Images decoded by the VAE."),
            io.Float.Input("seconds", default=0.0, min=0.0, max=1e6, step=1.0, round=0.1, tooltip="Of the search."),
        ], [BUDGET.Output(display_name="budget")],
            description="How much a search may spend. The first cap that is met ends it; 0 is no cap.")  # fmt: skip

    @classmethod
    def execute(cls, images: float, evaluations: int, decodes: int, seconds: float) -> io.NodeOutput:
        whole = {"nfe": evaluations or None, "decodes": decodes or None}
        return io.NodeOutput(Budget(**whole, images=images or None, seconds=seconds or None))


class SearchDrafter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapDrafter", "Drafter", "ttsnap", [
            io.Model.Input("model", tooltip="The sampler's model with a distilled LoRA, a smaller model, or the same."),
            io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="1 is fastest."),
            io.Int.Input("calls", default=1, min=1, max=64, tooltip="Calls of the model for one guess."),
            io.Float.Input("first_time", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="The noise that it is told "
                           "of first, as a share of the true one: 1, or 0.87 for the sampler's own model."),
        ], [DRAFTER.Output(display_name="drafter")],
            description="Guesses finished images fast, so that seeds are chosen before they are denoised.")  # fmt: skip

    @classmethod
    def execute(cls, model: Any, cfg: float, calls: int, first_time: float) -> io.NodeOutput:
        return io.NodeOutput(lambda guider: GuiderDrafter(guider(model.clone(), cfg), calls, first_time))


class ScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapScoreImages", "Score Images", "ttsnap", [
            io.Image.Input("images", tooltip="A batch of images."),
            REWARD.Input("reward", tooltip="What scores them."),
            io.String.Input("prompt", multiline=True, tooltip="The text that rewards read."),
        ], [
            io.Float.Output(display_name="scores", is_output_list=True, tooltip="The score of each image."),
            io.Int.Output(display_name="best", tooltip="The number of the best image, from 0."),
            io.String.Output(display_name="report", tooltip="All scores, to read."),
        ], description="What rewards say of images that are there already.")  # fmt: skip

    @classmethod
    def execute(cls, images: Tensor, reward: tuple[Weighted, ...], prompt: str) -> io.NodeOutput:
        scores, report = inputs.scored(images, prompt, reward)
        return io.NodeOutput(scores, inputs.chosen(scores, 1)[0], report)


class Pick(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TtsnapPick", "Pick", "ttsnap", [
            io.Image.Input("images", optional=True, tooltip="Images, or frames of videos in a row."),
            io.Latent.Input("latent", optional=True, tooltip="Their latents."),
            io.Float.Input("scores", optional=True, force_input=True, tooltip="Without them, the first are the best."),
            io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to take, best first."),
            io.String.Input("indices", default="", placeholder="0, 2", tooltip="Those to take instead, from 0: 0, 2."),
        ], [
            io.Image.Output(display_name="images", tooltip="The images that were taken."),
            io.Latent.Output(display_name="latent", tooltip="The latents that were taken."),
        ], description="Takes the best of several images, or those that you name.", is_input_list=True)  # fmt: skip

    @classmethod
    def execute(
        cls, keep: list[int], indices: list[str], images: list[Tensor] | None = None,
        latent: list[dict[str, Any]] | None = None, scores: list[float] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        batches = {"images": images or [], "samples": [each["samples"] for each in latent or []]}
        taken = inputs.picked(
            {name: torch.cat(parts) for name, parts in batches.items() if parts}, scores, keep[0], indices[0]
        )
        return io.NodeOutput(taken.get("images"), latent and {**latent[0], "samples": taken["samples"]})


class Nodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SearchSampler, Reward, SearchBudget, SearchDrafter, ScoreImages, Pick]
