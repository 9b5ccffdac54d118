"""A modular pipeline's call as a Denoiser: the blocks of its workflow, run for rows of any prompts, seeds and steps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState
from torch import Generator, Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.modular import blocks
from ttsnap.pipelines.modular.conditions import collated
from ttsnap.pipelines.modular.workflows import DRAWN, workflow_for
from ttsnap.pipelines.schedule import check_scheduler, laid_open

from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

KEPT = 512
"""Conditions of seeds that are kept at a time; others are made again when their rows run."""


class ModularDenoiser(PipelineDenoiser):
    """One call of a modular pipeline, open to search. Arguments are the inputs of the workflow's blocks.

    guidance_scale: of classifier-free guidance, for pipelines whose guider does that; None leaves the pipeline's guider as
    it is. ValueError for workflows, schedulers and guiders that search cannot use, and for what the blocks refuse.

    Which blocks run once for a prompt, and which once for a seed, is found by a trial run for an empty prompt, whose state
    also says what size images have and when steps are made.
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
        if guidance_scale is not None and "guidance_scale" in whole.input_names:
            call["guidance_scale"] = guidance_scale
        self._call = call
        check_scheduler(self.pipe.scheduler)
        changes = {"scheduler": copy.deepcopy(self.pipe.scheduler), **self._guiders(guidance_scale)}
        vars(self.pipe).update(changes)
        trial = blocks.start(whole, {**call, "prompt": ""})
        drawing, trial = blocks.first_that_draws(self.pipe, self._parts.before, trial, seeded(0))
        self._once, self._for_seed = self._parts.before[:drawing], self._parts.before[drawing:]
        self._trial = trial
        begin = len(self.pipe.scheduler.timesteps) - len(trial.get("timesteps"))
        schedule = laid_open(self.pipe.scheduler, begin=begin)
        guided = self._passes() > 1
        self.cfg_scale = guidance_scale if guidance_scale is not None else 1.0
        self.height, self.width = (int(trial.get(name) or 0) for name in ("height", "width"))
        state = self._loop_state(trial)
        self.text_length = tuple((name, tuple(v.shape)) for name, v in state.items() if isinstance(v, Tensor))
        self._use(schedule, guided=guided)

    def _guiders(self, scale: float | None) -> dict[str, Any]:
        """The pipeline's guiders, of which each call gets its own: they keep a step and, some of them, more."""
        guiders = {name: part for name, part in self.pipe.components.items() if name.startswith("guider")}
        for name, guider in guiders.items():
            kind = type(guider).__name__
            if type(guider) is not ClassifierFreeGuidance:
                raise ValueError(f"search cannot use {kind} as {name}, which may remember rows of earlier batches; set "
                                 "ClassifierFreeGuidance")  # fmt: skip
            if (guider.config.start, guider.config.stop) != (0.0, 1.0):
                raise ValueError(f"{name} guides some steps and not others (start {guider.config.start}, stop "
                                 f"{guider.config.stop}), but rows of one batch are at different steps; set 0 and 1")  # fmt: skip
        return {name: part.new() if scale is None else part.new(guidance_scale=scale) for name, part in guiders.items()}

    def _passes(self) -> int:
        """Forward passes of one evaluation."""
        guider = self.pipe.components.get("guider")
        if guider is None:
            return 1
        guider.set_state(step=0, num_inference_steps=1, timestep=torch.zeros(()))
        return int(guider.num_conditions)

    # --- prompts and seeds ------------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str]) -> None:
        given = [self._of_prompt(i, prompt) for i, prompt in enumerate(prompts)]
        self._begun = [blocks.run(self.pipe, self._once, blocks.start(self._whole, call)) for call in given]
        # The first conditions are those of the prompts with any seed; those of (prompt, seed) have numbers after them.
        ready = [self._seeded(i, seeded(0)) for i in range(len(prompts))]
        shapes = {tuple(each["latents"].shape) for each in ready}
        if len(shapes) > 1:
            raise ValueError(f"prompts of one search share batches, so that their images must have one size; these latents "
                             f"have {sorted(shapes)}: give height and width, or images of one size")  # fmt: skip
        self._conditions: OrderedDict[int, dict[str, Any]] = OrderedDict(enumerate(ready))
        self._numbers: dict[tuple[int, int], int] = {}

    def _of_prompt(self, i: int, prompt: str) -> dict[str, Any]:
        """The arguments of the call for its prompt number i: of those that name a text, its own where each has one."""
        texts = {name: value[i] for name, value in self._call.items() if "prompt" in name and isinstance(value, list)}
        return {**self._call, **texts, "prompt": prompt}

    def _seeded(self, prompt: int, generator: Generator) -> dict[str, Any]:
        """The state of the loop for a prompt and a seed."""
        state = blocks.forked(self._begun[prompt], generator=generator)
        for block in self._for_seed:
            state = blocks.run(self.pipe, [block], state)
            if state.get(DRAWN) is None:
                state.set(DRAWN, state.get("latents"))
        return self._loop_state(state)

    def _loop_state(self, state: PipelineState) -> dict[str, Any]:
        """What the loop reads of this state, with the noise and what is kept."""
        values: dict[str, Any] = self._parts.loop.get_block_state(state).as_dict()
        more = (self.workflow.noise, *(("mask", "image_latents") if self.workflow.keeps else ()))
        return {**values, "latents": state.get("latents"), **{name: state.get(name) for name in more}}

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        if not self.workflow.redraws:
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
        return torch.cat([self._seeded(0, generator)[self.workflow.noise] for generator in generators])

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if not self.workflow.redraws:
            return noise
        # As the blocks noised the image by their own draw, and changed by as much as this noise differs from that.
        own, latents = self._column(self.workflow.noise, cond), self._column("latents", cond)
        return latents + (float(self.schedule.sigma[0]) * (noise - own)).to(latents.dtype)

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        if not self.workflow.by_step or len(set(step.tolist())) == 1:
            return self._denoised(x, t, int(step[0]), at)
        out = torch.empty_like(x)
        for position in sorted(set(step.tolist())):
            here = (step == position).nonzero()[:, 0]
            there = here.to(x.device)
            out[there] = self._denoised(x[there], t[there], position, at[here]).to(x.dtype)
        return out

    def _denoised(self, x: Tensor, t: Tensor, position: int, at: Tensor) -> Tensor:
        """The guided output of rows that go together."""
        pipe = blocks.with_parts(self.pipe, scheduler=blocks.AlreadyScaled(self.pipe.scheduler))
        values = collated([self._conditions[i] for i in at.tolist()], self.workflow.rules)
        state = BlockState(**{**values, "latents": x, **{name: {} for name in self.workflow.scratch}})
        for block in self._parts.denoise:
            _, state = block(pipe, state, i=position, t=t)
        out: Tensor = state.noise_pred
        return out

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        prediction = super().predict(x, step, cond)
        if not self.imposes:
            return prediction
        return prediction._replace(x0=self._kept(prediction.x0, self._column("image_latents", cond), cond))

    @property
    def imposes(self) -> bool:
        return self.workflow.keeps

    def impose(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        if not self.imposes:
            return x
        alpha, sigma = (torch.cat([values, values.new_tensor([last])])[step]
                        for values, last in ((self.schedule.alpha, 1.0), (self.schedule.sigma, 0.0)))  # fmt: skip
        image, noise = self._column("image_latents", cond), self._column(self.workflow.noise, cond)
        return self._kept(x, rows(sigma, image) * noise + rows(alpha, image) * image, cond)

    def _kept(self, x: Tensor, outside: Tensor, cond: Tensor) -> Tensor:
        """Latents x (N, ...) inside of the mask, and others outside of it."""
        mask = self._column("mask", cond)
        return ((1 - mask) * outside + mask * x).to(x.dtype)

    # --- images -----------------------------------------------------------------------------------------------------

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        made: Tensor = self._ended(vae, x0, "pt")
        return made

    def finished(self, latents: Tensor) -> Tensor:
        made: Tensor = self._ended(self.pipe.vae, latents, "latent")
        return made

    def _ended(self, vae: Any, latents: Tensor, output_type: str) -> Any:
        """What the blocks after the loop make of latents."""
        state = blocks.forked(self._trial, latents=self.settled(latents, vae), output_type=output_type)
        return blocks.run(blocks.with_parts(self.pipe, vae=vae), self._parts.end, state).get(self.workflow.output)

    # --- what blocks cannot do --------------------------------------------------------------------------------------

    def use_drafter(self, spec: Any) -> None:
        raise ValueError("searches over modular pipelines have no drafts; leave draft out")

    def capture(self, block: int) -> None:
        raise ValueError("modular pipelines do not hand out hidden features; take a reward that sees pixels or latents")

    def check_differentiable(self, through: str) -> None:
        raise ValueError("the blocks of modular pipelines run without gradients; leave guide out")

    def parameters(self) -> Iterable[Tensor]:
        networks = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return [parameter for network in networks for parameter in network.parameters()]
