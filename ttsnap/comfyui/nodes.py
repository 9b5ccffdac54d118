# mypy: allow-subclassing-any
"""Nodes for ComfyUI, which alone imports this file. Each is a function of its inputs, under what it
takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import latent_preview
import nodes
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ttsnap.comfyui import inputs
from ttsnap.comfyui.inputs import KERNELS, LINKED, NODE_BUDGET, NodeReward, Wanted, Weighted, picked
from ttsnap.core.grid import Grid
from ttsnap.core.results import Event
from ttsnap.loop.budget import Budget
from ttsnap.options.every import DECLARED
from ttsnap.options.sampler import Finish
from ttsnap.pipelines.comfyui.drafts import finishing_sigmas
from ttsnap.pipelines.comfyui.latents import GuiderDrafter, LatentSearch
from ttsnap.request.limits import PUBLIC_ALGORITHMS
from ttsnap.request.request import Prepared
from ttsnap.results.outputs import LiveSheet
from ttsnap.reward_models.registry import asked_of, make_reward

REWARD, BUDGET, DRAFTER = map(io.Custom, LINKED)
KINDS = {
    "MODEL": io.Model,
    "CONDITIONING": io.Conditioning,
    "LATENT": io.Latent,
    "INT": io.Int,
    "FLOAT": io.Float,
}
SAMPLERS = [
    *(name for name in comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"),
    *KERNELS,
]
WEIGHT = io.Float.Input(
    "weight",
    default=1.0,
    min=-1000.0,
    max=1000.0,
    step=0.1,
    round=0.001,
    tooltip="What its scores are multiplied by; below 0 where they should be low.",
)
MORE = REWARD.Input("more", optional=True, tooltip="Further rewards, whose scores are added.")
RETURN = "return the best so far"
SIZES = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What newer versions note in an empty latent until it has been sampled."""


def node(
    name: str, description: str, takes: Callable[[], list[Any]], *gives: Any
) -> Callable[[Callable[..., Sequence[Any]]], type[io.ComfyNode]]:
    """Makes a node of a function: keywords, each checked, -> outputs in order."""

    def made(work: Callable[..., Sequence[Any]]) -> type[io.ComfyNode]:
        class TtsnapNode(io.ComfyNode):
            @classmethod
            def define_schema(cls) -> io.Schema:
                key = f"Ttsnap{name.replace(' ', '')}"
                return io.Schema(key, name, "ttsnap", takes(), list(gives), description=description)

            @classmethod
            def execute(cls, **given: Any) -> io.NodeOutput:
                return io.NodeOutput(*work(**inputs.checked(takes(), given)))

        return TtsnapNode

    return made


def of_ksampler(*names: str) -> list[Any]:
    """Inputs as KSampler declares them, with its tooltips."""
    stock = nodes.KSampler.INPUT_TYPES()["required"]
    return [KINDS[stock[name][0]].Input(name, **stock[name][1]) for name in names]


class NodeProgress:
    """Shows a search on the node that runs, and hears that the user has cancelled it.

    returns: whether it then ends with its best image. A second time it is stopped even so.
    """

    def __init__(self, request: Prepared, *, returns: bool) -> None:
        self.request = request
        self.returns = returns
        self.cancelled = False
        self.bar = ProgressBar(1)
        self.spent = self.planned = 0.0

    def begin(self, grid: Grid, cap: Budget) -> Callable[[Event], None]:
        """What listens to a search on this grid. It counts evaluations of the budget's cap; where
        there is none, its seconds, or evaluations of all moves."""
        items = asked_of(self.request.engine.rewards, self.request.prompt.read)
        sheet = LiveSheet(grid.levels, self.request.selection, items)

        def listen(event: Event) -> None:
            self.spent += event.nfe * (event.kind == "tick")
            self.planned += event.nfe * (event.kind == "move")
            picture = sheet.take(event)
            done = (self.spent, cap.nfe or max(self.planned, 1))
            if cap.nfe is None and cap.seconds is not None:
                done = event.seconds, cap.seconds
            try:
                self.bar.update_absolute(*done, picture and ("JPEG", picture, None))
            except model_management.InterruptProcessingException:
                if not self.returns or self.cancelled:
                    raise
                self.cancelled = True

        return listen

    def should_stop(self) -> bool:
        if model_management.processing_interrupted() and not self.cancelled:
            model_management.interrupt_current_processing(False)
            self.cancelled = True
        return self.cancelled


class KSamplerInputs(NamedTuple):
    """The inputs of KSampler."""

    model: Any
    positive: Any
    negative: Any
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float

    @property
    def stock_name(self) -> str:
        """The stock sampler whose sigmas are taken."""
        return "euler" if self.sampler_name in KERNELS else self.sampler_name

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) noise levels."""
        model = self.model
        how = self.stock_name, self.scheduler, self.denoise, model.model_options
        sampler = comfy.samplers.KSampler(model, steps, model.load_device, *how)
        return sampler.sigmas  # type: ignore[no-any-return]

    def guider(self, model: Any, scale: float) -> Any:
        """Calls a model for both conditions, at this guidance scale."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(scale)
        return guider

    def previewer(self) -> Any:
        """ComfyUI's fast decoder. ValueError where it has none for the model."""
        kind = self.model.model.latent_format
        previewer = latent_preview.get_previewer(self.model.load_device, kind)
        if previewer is None:
            raise ValueError(
                "ComfyUI has no previewer for this model; start it with --preview-method auto, or"
                " choose vae"
            )
        return previewer

    def drafting(
        self, drafter: GuiderDrafter | None
    ) -> tuple[GuiderDrafter | None, Tensor | None, str | None]:
        """The drafter under these conditions, the noise levels from which drafts are finished, and
        how stock nodes make an image again."""
        if drafter is None:
            return None, None, inputs.STOCK
        guider = self.guider(drafter.guider.model_patcher, drafter.guider.cfg)
        drafts = drafter._replace(guider=guider)
        if not drafter.finish:
            return drafts, None, inputs.STOCK
        model = self.model.model
        whole, rest = finishing_sigmas(drafter.finish, self.sigmas, self.steps, model)
        begin = len(self.sigmas(whole)) - len(rest)
        again = inputs.of_draft(drafter, whole, begin) if self.denoise == 1 else None
        return drafts, rest, again


@node(
    "Search Sampler",
    "KSampler for the seeds from this one on: rewards say which to finish; best first.",
    lambda: [
        *of_ksampler("model", "positive", "negative", "latent_image"),
        io.Vae.Input("vae", tooltip="Decodes what rewards look at."),
        REWARD.Input("reward", tooltip="What scores images."),
        BUDGET.Input(
            "budget",
            optional=True,
            tooltip=f"How much to spend. Without it, what {NODE_BUDGET.images:g} images take.",
        ),
        DRAFTER.Input(
            "drafter",
            optional=True,
            tooltip="A fast model that says which seeds are worth denoising.",
        ),
        io.String.Input(
            "prompt", multiline=True, tooltip="The text that rewards read. The model does not."
        ),
        *of_ksampler("seed", "steps", "cfg"),
        io.Combo.Input(
            "sampler_name",
            SAMPLERS,
            tooltip=(
                "As in KSampler, or a sampler of ttsnap, for algorithms that make "
                "several candidates of one in mid-course."
            ),
        ),
        io.Combo.Input("scheduler", comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
        *of_ksampler("denoise"),
        io.Combo.Input(
            "algorithm",
            list(PUBLIC_ALGORITHMS),
            default=DECLARED["search"].start,
            tooltip=(
                "How the budget is spent. "
                "seed-pruning begins many seeds, and finishes those that rewards like early."
            ),
        ),
        io.Int.Input(
            "keep", default=1, min=1, max=64, tooltip="How many images come out, best first."
        ),
        io.String.Input(
            "options",
            optional=True,
            default="",
            placeholder='{"n": 20}',
            tooltip="Options of the algorithm as JSON, as `ttsnap algorithms` lists them.",
        ),
        io.Int.Input(
            "batch_size",
            optional=True,
            default=0,
            min=0,
            max=256,
            tooltip="Most candidates per call of the model; 0 for as many as fit, at most 16.",
        ),
        io.Combo.Input(
            "previews",
            ["vae", "previewer"],
            optional=True,
            tooltip=(
                "What decodes unfinished images for rewards: the VAE, or ComfyUI's fast previewer."
            ),
        ),
        io.Combo.Input(
            "on_cancel",
            ["stop", RETURN],
            optional=True,
            tooltip="When you cancel: stop everything, or go on with the best images found so far.",
        ),
        io.Boolean.Input(
            "diverse",
            optional=True,
            default=False,
            tooltip="Keep images that are unlike each other.",
        ),
    ],
    io.Latent.Output(display_name="latent"),
    io.Image.Output(display_name="images"),
    io.Int.Output(display_name="seeds", is_output_list=True),
    io.Float.Output(display_name="scores", is_output_list=True),
    io.String.Output(display_name="report", tooltip="What was found and spent."),
)
def search_sampler(
    latent_image: dict[str, Any],
    vae: Any,
    drafter: GuiderDrafter | None = None,
    previews: str = "vae",
    on_cancel: str = "stop",
    **given: Any,
) -> Sequence[Any]:
    """Search as KSampler would sample: its latent, noise, sigmas, and mask."""
    wanted = picked(Wanted, given)
    sampler = picked(KSamplerInputs, given)
    request = wanted.search()
    sizes = {key: latent_image[key] for key in SIZES if key in latent_image}
    samples = latent_image["samples"]
    drafts, rest, again = sampler.drafting(drafter)
    progress = NodeProgress(request, returns=on_cancel == RETURN)
    search = LatentSearch(
        request,
        sampler.guider(sampler.model, sampler.cfg),
        comfy.samplers.sampler_object(sampler.stock_name),
        sampler.sigmas(sampler.steps),
        comfy.sample.fix_empty_latent_channels(sampler.model, samples, **sizes),
        vae,
        latent_image.get("noise_mask"),
        drafts,
        rest,
        sampler.previewer() if previews == "previewer" else None,
    )
    result, latents = search.run(progress.begin, progress.should_stop if progress.returns else None)
    more = {key: value for key, value in latent_image.items() if key not in ("batch_index", *SIZES)}
    stock = sampler.sampler_name not in KERNELS and "batch_index" not in latent_image
    name = f"{wanted.algorithm} {wanted.options}".strip()
    report = inputs.reported(result, name, again if stock else None)
    seeds = [image.seed for image in result.images]
    scores = [image.reward for image in result.images]
    return {**more, "samples": latents}, inputs.frames(result.images), seeds, scores, report


@node(
    "Reward by Node",
    "Scores images by any node that takes one image, and gives a number.",
    lambda: [
        io.String.Input(
            "node",
            default="",
            tooltip=(
                "Its title in the menu, or its class. Its texts get the prompt, and "
                "what has a default keeps that."
            ),
        ),
        io.AnyType.Input(
            "also", optional=True, tooltip="What else it takes, such as a model from its loader."
        ),
        WEIGHT,
        MORE,
    ],
    REWARD.Output(display_name="reward"),
)
def reward_by_node(
    node: str, weight: float, also: Any = None, more: tuple[Weighted, ...] = ()
) -> Sequence[Any]:
    titles = {title: key for key, title in nodes.NODE_DISPLAY_NAME_MAPPINGS.items()}
    return [
        (
            *more,
            Weighted(
                NodeReward(node, nodes.NODE_CLASS_MAPPINGS.get(titles.get(node, node)), also),
                weight,
            ),
        )
    ]


@node(
    "Checklist",
    "Several questions about an image, each answered by itself: what is to be there.",
    lambda: [
        io.String.Input(
            "items",
            default="",
            multiline=True,
            tooltip=(
                "A line each, as two dogs, text: OPEN or count: 3 apples; without any, what the "
                "prompt names."
            ),
        ),
        REWARD.Input("by", tooltip="Who answers: a reward with scores from 0 to 1, as vqascore."),
        MORE,
    ],
    REWARD.Output(display_name="reward"),
)
def checklist(
    items: str, by: tuple[Weighted, ...], more: tuple[Weighted, ...] = ()
) -> Sequence[Any]:
    return [(*more, inputs.checklist(items, by))]


@node(
    "Budget",
    "How much a search may spend. The first cap that is met ends it; 0 is no cap.",
    lambda: [
        io.Float.Input(
            "images",
            default=NODE_BUDGET.images,
            min=0.0,
            max=10000.0,
            step=1.0,
            round=0.01,
            tooltip="Evaluations of the model, as many as so many images take.",
        ),
        io.Int.Input(
            "evaluations", default=0, min=0, max=10**9, tooltip="Evaluations of the model."
        ),
        io.Int.Input("decodes", default=0, min=0, max=10**9, tooltip="Images decoded by the VAE."),
        io.Float.Input(
            "seconds", default=0.0, min=0.0, max=1e6, step=1.0, round=0.1, tooltip="Of the search."
        ),
    ],
    BUDGET.Output(display_name="budget"),
)
def search_budget(images: float, evaluations: int, decodes: int, seconds: float) -> Sequence[Any]:
    return [
        Budget(
            nfe=evaluations or None,
            decodes=decodes or None,
            images=images or None,
            seconds=seconds or None,
        )
    ]


@node(
    "Drafter",
    "Guesses finished images fast: seeds are chosen by these, or denoised from them.",
    lambda: [
        io.Model.Input(
            "model",
            tooltip="The sampler's model with a distilled LoRA, a smaller model, or the same.",
        ),
        io.Float.Input(
            "cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="1 is fastest."
        ),
        io.Int.Input(
            "calls", default=1, min=1, max=64, tooltip="Calls of the model for one guess."
        ),
        io.Float.Input(
            "first_time",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip=(
                "The noise that it is told of "
                "first, as a share of the true one: 1, or 0.87 for the sampler's own model."
            ),
        ),
        io.Float.Input(
            "finish",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            optional=True,
            tooltip=(
                "The noise level from which the guess is denoised, as in image-to-image; 0: a guess"
                " only ranks its seed."
            ),
        ),
        io.Int.Input(
            "finish_steps",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="The steps from there; 0: those that are left of the sampler's.",
        ),
    ],
    DRAFTER.Output(display_name="drafter"),
)
def search_drafter(
    model: Any,
    cfg: float,
    calls: int,
    first_time: float,
    finish: float = 0.0,
    finish_steps: int = 0,
) -> Any:
    if finish_steps and not finish:
        raise ValueError(
            f"finish_steps {finish_steps} are the steps from the noise level finish, which is 0;"
            " set it, as finish 0.4, or finish_steps to 0"
        )
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_cfg(cfg)
    return [
        GuiderDrafter(
            guider, calls, first_time, Finish(finish, finish_steps or None) if finish else None
        )
    ]


@node(
    "Pick Best",
    "Takes those of several images that rewards like best.",
    lambda: [
        io.Image.Input("images", tooltip="A batch of images."),
        io.Latent.Input("latent", optional=True, tooltip="Their latents."),
        REWARD.Input("reward", tooltip="What scores them."),
        io.String.Input("prompt", multiline=True, tooltip="The text that rewards read."),
        io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to take, best first."),
    ],
    io.Latent.Output(display_name="latent"),
    io.Image.Output(display_name="images"),
    io.Float.Output(
        display_name="scores", is_output_list=True, tooltip="Of the images that are taken."
    ),
    io.String.Output(display_name="report", tooltip="All scores, to read."),
)
def pick_best(
    images: Tensor, reward: tuple[Weighted, ...], prompt: str, keep: int, latent: Any = None
) -> Any:
    scores, report = inputs.values_of(images, prompt, reward)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:keep]
    if latent is not None:
        latents = latent["samples"].shape[0]  # nested ones have no length
        if latents != len(images):
            raise ValueError(f"got {latents} latents of {len(images)} images; connect one for each")
        latent = {**latent, "samples": latent["samples"][best]}
    return latent, images[best], [scores[i] for i in best], report


def nodes_of(rewards: Path) -> list[type[io.ComfyNode]]:
    """All nodes. rewards: the operator's file, as of `inputs.rewards_of`."""
    specs = inputs.rewards_of(rewards)

    @node(
        "Reward",
        "What scores images. Connect several in a chain for their weighted sum.",
        lambda: [
            io.Combo.Input(
                "name", [*specs], default="pickscore", tooltip="Its weights are downloaded once."
            ),
            WEIGHT,
            io.Combo.Input(
                "device", ["auto", "cpu"], tooltip="Where it runs: where models do, or on the CPU."
            ),
            MORE,
        ],
        REWARD.Output(display_name="reward"),
    )
    def reward(
        name: str, weight: float, device: str, more: tuple[Weighted, ...] = ()
    ) -> Sequence[Any]:
        place = "cpu" if device == "cpu" else model_management.get_torch_device()
        return [(*more, Weighted(make_reward(specs[name], device=place), weight))]

    chains = [reward, reward_by_node, checklist]
    return [search_sampler, *chains, search_budget, search_drafter, pick_best]
