"""A modular pipeline's call as a Denoiser: the blocks of its workflow, run for rows of any prompts, seeds and steps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines.modular_pipeline import BlockState
from torch import Generator, Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.modular import blocks, guiders
from ttsnap.pipelines.modular.blocks import State
from ttsnap.pipelines.modular.conditions import collated
from ttsnap.pipelines.modular.workflows import DRAWN, TAKEN_OUT, workflow_for
from ttsnap.pipelines.rows import grid_of
from ttsnap.pipelines.schedule import check_scheduler, laid_open

from ttsnap.sampling.interpolants import Interpolant, rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

NOISE = "initial noise"
"""The field of a row's condition that holds its own, whatever the blocks call it."""
KEPT = 512
"""Conditions of seeds that are kept at a time; others are made again when their rows run."""


class ModularDenoiser(PipelineDenoiser):
    """One call of a modular pipeline, open to search. Arguments are the inputs of the workflow's blocks.

    guidance_scale: of classifier-free guidance, for pipelines whose guider does that; None leaves the pipeline's guider
    as it is. ValueError for workflows, schedulers and guiders that search cannot use, and for what the blocks refuse.

    Which blocks run once for a prompt, and which once for a seed, is found by a trial run for an empty prompt, whose
    state also says what size images have and when steps are made.
    """

    blocks = None
    judges_estimates = False

    def __init__(self, pipe: Any, *, guidance_scale: float | None = None, **call: Any) -> None:
        super().__init__(pipe)
        self.workflow = workflow_for(self.pipe.stock_class().__name__, call)
        self.network = self.workflow.network  # type: ignore[misc]
        whole = self.pipe.blocks
        whole = whole.get_execution_blocks() if self.workflow.name is None else whole.get_workflow(self.workflow.name)
        self._whole, self._parts = whole, blocks.parts_of(whole)
        blocks.check_inputs(whole, self.workflow.task, call)
        if guidance_scale is not None and "guidance_scale" in whole.input_names:
            call["guidance_scale"] = guidance_scale
        self._call, self.cfg_scale = call, 1.0 if guidance_scale is None else guidance_scale
        check_scheduler(self.pipe.scheduler)
        # This call's own: blocks set timesteps in the one, and steps in the others.
        vars(self.pipe).update(scheduler=copy.deepcopy(self.pipe.scheduler), **guiders.own(self.pipe, guidance_scale))
        if self.net.config.get("time_cond_proj_dim") is not None:  # it reads the scale: the loop guides by one pass
            self.pipe.guider.disable()
        if self.workflow.always_guided and guiders.passes(self.pipe) == 1:
            raise ValueError(f"the text encoder's block of {self.pipe.stock_class().__name__} fails without guidance; "
                             "set guidance_scale to more than 1")  # fmt: skip
        blocks.check_decoder(self.pipe.vae, call)
        trial = blocks.start(whole, {**self._of_prompt(0), "prompt": ""})
        drawing, self._trial = blocks.first_that_draws(self.pipe, self._parts.before, trial, seeded(0))
        self._once, self._for_seed = self._parts.before[:drawing], self._parts.before[drawing:]
        self.height, self.width = (int(self._trial.get(name) or 0) for name in ("height", "width"))
        begin = len(self.pipe.scheduler.timesteps) - len(self._trial.get("timesteps"))
        arguments = {"eta": call["eta"]} if "eta" in call else {}
        schedule = laid_open(self.pipe.scheduler, begin=begin, step_arguments=arguments)
        self._use(schedule, guided=guiders.passes(self.pipe) > 1)
        shapes = {name: tuple(v.shape) for name, v in self._loop_state(self._trial).items() if isinstance(v, Tensor)}
        self.text_length = tuple(shapes.items())

    @property
    def frames(self) -> int | None:
        if self.workflow.frames_every is None:
            return None
        every = int(getattr(self.pipe, self.workflow.frames_every))
        return (int(self._trial.get("num_frames")) - 1) // every * every + 1

    # --- prompts and seeds ------------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str]) -> None:
        given = [{**self._of_prompt(i), "prompt": prompt} for i, prompt in enumerate(prompts)]
        self._begun = [blocks.run(self.pipe, self._once, blocks.start(self._whole, call)) for call in given]
        # The first conditions are those of the prompts with any seed; those of (prompt, seed) have numbers after them.
        ready = [self._seeded(i, seeded(0)) for i in range(len(prompts))]
        shapes = sorted({tuple(each["latents"].shape[1:]) for each in ready})
        if len(shapes) > 1:
            raise ValueError(f"prompts of one search share batches, so that their images must have one size, and these "
                             f"have latents of {shapes}: give height and width, or images of one size")  # fmt: skip
        self._conditions: OrderedDict[int, dict[str, Any]] = OrderedDict(enumerate(ready))
        self._numbers: dict[tuple[int, int], int] = {}
        self._sources = [self._source(call["image"]) for call in given] if self.edits else []

    def _of_prompt(self, i: int) -> dict[str, Any]:
        """The arguments of the call for its prompt i: its own text or image, where a list has one for each."""
        return {**self._call, **{name: values[i] for name, values in self._listed.items()}}

    @property
    def _listed(self) -> dict[str, Sequence[Any]]:
        """The arguments of the call that are lists with an entry for each prompt."""
        of_each = {name for name in self._call if "prompt" in name} | self.workflow.given
        of_each -= {"image"} if self.workflow.references else set()
        return {n: v for n, v in self._call.items() if n in of_each and isinstance(v, list | tuple)}

    def encode_instead(self, prompts: Sequence[str], of: Sequence[str]) -> None:
        for name, values in self._listed.items():
            if len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} entries, but there are {len(prompts)} prompts; give one "
                                 "for all, or one for each")  # fmt: skip
        super().encode_instead(prompts, of)

    @property
    def edits(self) -> bool:
        return "image" in self.workflow.given

    def sources(self, cond: Tensor) -> Tensor:
        prompts = {number: prompt for (prompt, _), number in self._numbers.items()}
        return torch.cat([self._sources[prompts.get(i, i)] for i in cond.tolist()])

    def _source(self, image: Any) -> Tensor:
        """An image that is edited, the first of several, as (1, 3, h, w) in [0, 1]."""
        first = image[0] if isinstance(image, list | tuple) else image
        made: Tensor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False).preprocess(first)
        return made.to(self.device)

    def _seeded(self, prompt: int, generator: Generator) -> dict[str, Any]:
        """The state of the loop for a prompt and a seed."""
        state = blocks.forked(self._begun[prompt], generator=generator)
        for block in self._for_seed:
            state = blocks.run(self.pipe, [block], state)
            if state.get(DRAWN) is None:
                state.set(DRAWN, state.get("latents"))
        return self._loop_state(state)

    def _loop_state(self, state: State) -> dict[str, Any]:
        """What the loop reads of this state, with the noise and what is kept."""
        values: dict[str, Any] = self._parts.loop.get_block_state(state).as_dict()
        more = ("mask", "image_latents") if self.workflow.keeps else ()
        values |= {"latents": state.get("latents"), **{name: state.get(name) for name in more}}
        return {**values, NOISE: self._noise(state)}

    def _noise(self, state: State) -> Tensor:
        """The initial noise (1, ...) in a state of the loop."""
        if self.workflow.noise != TAKEN_OUT:
            return cast(Tensor, state.get(self.workflow.noise))
        alpha, sigma = float(self.schedule.alpha[0]), float(self.schedule.sigma[0])
        return cast(Tensor, (state.get("latents") - alpha * state.get("image_latents")) / sigma)

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        if not (self.workflow.redraws or self.workflow.by_seed):
            return prompts
        return torch.tensor([self._number(p, s) for p, s in zip(prompts.tolist(), seeds, strict=True)])

    def _number(self, prompt: int, seed: int) -> int:
        """That of the condition of a prompt and a seed."""
        at = (prompt, seed)
        number = self._numbers.setdefault(at, len(self._begun) + len(self._numbers))
        if number not in self._conditions:
            self._conditions[number] = self._seeded(prompt, seeded(seed))
        self._conditions.move_to_end(number)
        for old in [n for n in self._conditions if n >= len(self._begun)][: -KEPT or None]:
            del self._conditions[old]
        return number

    def _column(self, name: str, cond: Tensor) -> Tensor:
        """One field (N, ...) of these conditions."""
        return torch.cat([self._conditions[i][name] for i in cond.tolist()])

    # --- sampling ---------------------------------------------------------------------------------------------------

    def init_latents(self, generators: Sequence[Generator]) -> Tensor:
        return torch.cat([self._seeded(0, generator)[NOISE] for generator in generators])

    def low_frequencies(self, noise: Tensor) -> Tensor:
        if noise.dim() != 2:  # channels, perhaps frames, rows and columns
            return super().low_frequencies(noise)
        picture = noise.T.unflatten(1, grid_of(len(noise), self.height, self.width))
        return super().low_frequencies(picture).flatten(1).T

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if self.workflow.holds_first_frame:
            return self._held(noise, cond)
        if not self.workflow.redraws:
            return noise
        # As the blocks noised the image by their own draw, and changed by as much as this noise differs from that.
        own, latents = self._column(NOISE, cond), self._column("latents", cond)
        return latents + (float(self.schedule.sigma[0]) * (noise - own)).to(latents.dtype)

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        groups = self._together(step)
        if len(set(groups.tolist())) == 1:
            return self._denoised(x, t, step, at)
        out = torch.empty_like(x)
        for group in sorted(set(groups.tolist())):
            here = (groups == group).nonzero()[:, 0]
            there = here.to(x.device)
            out[there] = self._denoised(x[there], t[there], step[here], at[here]).to(x.dtype)
        return out

    def _together(self, step: Tensor) -> Tensor:
        """(N,) numbers, the same for rows at these positions that may go through the blocks together."""
        if self.workflow.experts:
            return self._above(step).long()
        return step if self.workflow.by_step else torch.zeros_like(step)

    def _above(self, step: Tensor) -> Tensor:
        """Which of these positions (N,) the first of two experts denoises."""
        boundary: float = self.pipe.config.boundary_ratio * self.pipe.num_train_timesteps
        return self.schedule.timesteps.cpu()[step] >= boundary

    def _denoised(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The guided output of rows that go together."""
        pipe = blocks.with_parts(self.pipe, scheduler=blocks.AlreadyScaled(self.pipe.scheduler))
        values = collated([self._conditions[i] for i in at.tolist()], self.workflow.rules)
        state: Any = BlockState(**{**values, "latents": x, **{name: {} for name in self.workflow.scratch}})
        when = blocks.OneSide(t, bool(self._above(step)[0])) if self.workflow.experts else t
        for block in self._parts.denoise:
            _, state = block(pipe, state, i=int(step[0]), t=when)
        out: Tensor = state.noise_pred
        return out.float() if self.workflow.steps_in_float32 else out

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        prediction = super().predict(x, step, cond)
        if self.workflow.holds_first_frame:
            return prediction._replace(x0=self._held(prediction.x0, cond))
        if not self.imposes:
            return prediction
        return prediction._replace(x0=self._kept(prediction.x0, self._column("image_latents", cond), cond))

    @property
    def imposes(self) -> bool:
        # Networks made for inpainting (9 channels) see mask and image, and are left to keep what lies outside.
        return self.workflow.holds_first_frame or (self.workflow.keeps and self.net.config.in_channels != 9)

    def impose(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        if not self.imposes:
            return x
        if self.workflow.holds_first_frame:
            return self._held(x, cond)
        alpha, sigma = (torch.cat([values, values.new_tensor([last])])[step]
                        for values, last in ((self.schedule.alpha, 1.0), (self.schedule.sigma, 0.0)))  # fmt: skip
        image, noise = self._column("image_latents", cond), self._column(NOISE, cond)
        return self._kept(x, rows(sigma, image) * noise + rows(alpha, image) * image, cond)

    def _held(self, x: Tensor, cond: Tensor) -> Tensor:
        """Latents x (N, S, C), tokens of frames, with the first frame that the image gives."""
        first = self._column("conditioning_mask", cond)[..., None] > 0
        return torch.where(first, self._column("latents", cond).to(x.dtype), x)

    def _kept(self, x: Tensor, outside: Tensor, cond: Tensor) -> Tensor:
        """Latents x (N, ...) inside of the mask, and others outside of it."""
        mask = self._column("mask", cond)
        return ((1 - mask) * outside + mask * x).to(x.dtype)

    def settled(self, latents: Tensor, vae: Any) -> Tensor:
        # Loops cast what their scheduler narrowed back to the dtype that they began with.
        return super().settled(latents, vae).to(self._trial.get("latents").dtype)

    # --- images -----------------------------------------------------------------------------------------------------

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        """What the blocks after the loop make of latents: images or videos in [0, 1]."""
        names = {name for block in self._parts.end for name in block.input_names if name in self._trial.values}
        row = {name: self._trial.get(name) for name in names}
        batch = collated([row] * len(x0), self.workflow.rules)
        changes = {**batch, "batch_size": len(x0), "latents": self.settled(x0, vae), **self.workflow.ends_with}
        state = blocks.forked(self._trial, **changes)
        made = blocks.run(blocks.with_parts(self.pipe, vae=vae), self._parts.end, state).get(self.workflow.output)
        return cast(Tensor, made)

    def preview(self, x0: Tensor) -> Tensor:
        with blocks.preview_refused(self.pipe):
            return super().preview(x0)

    # --- what blocks cannot do --------------------------------------------------------------------------------------

    def convert(self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> None:
        moved = path is not None or not isinstance(times, str) or times != "pipeline"
        if self.workflow.redraws and (moved or self.schedule.prediction != "flow"):
            raise ValueError("an image is redrawn from where its strength says, on the model's own path and times, and "
                             "for other models than flows by the scheduler's own step; leave kernel, path and times "
                             "out")  # fmt: skip
        if self.workflow.holds_first_frame and path is not None:
            raise ValueError("the first frame is held without noise, and another path would scale it; leave path out")
        super().convert(path, times)

    def take_in(self, other: Self) -> int:
        raise ValueError("calls of modular pipelines have conditions of their own; let each have a network of its own")

    def use_drafter(self, spec: Any) -> None:
        raise ValueError("searches over modular pipelines have no drafts; leave draft out")

    def capture(self, block: int) -> None:
        raise ValueError("modular pipelines do not hand out hidden features; take a reward that sees pixels or latents")

    def check_differentiable(self, through: str) -> None:
        raise ValueError("the blocks of modular pipelines run without gradients; leave guide out")
