"""A modular pipeline's call as a Denoiser: the blocks of its workflow, run for rows of any prompts, seeds and steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast

import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from torch import Generator, Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import opened
from ttsnap.pipelines.denoiser import ENCODING, PipelineDenoiser
from ttsnap.pipelines.guidance import InCall
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.schedule import check_scheduler, laid_open
from ttsnap.pipelines.modular import blocks, guiders
from ttsnap.pipelines.modular.blocks import SOUND, Block, CallState
from ttsnap.pipelines.modular.conditions import Conditions, Encoded, collated, source_of, taken
from ttsnap.pipelines.modular.workflows import ANY, DRAWN, ONE_EXPERT, TAKEN_OUT, check_lists, workflow_for
from ttsnap.pipelines.sides import check_sides
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.interpolants import Interpolant, rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

NOISE = "initial noise"
"""The field of a row's state with its initial noise, whatever the blocks call it."""


class ModularDenoiser(PipelineDenoiser):
    """One call of a modular pipeline.

    Arguments are the inputs of the workflow's blocks and the settings of the pipeline's guiders (guiders.py). A trial
    run for an empty prompt tells which blocks run once for a prompt and which once for a seed. It also tells the size
    of images and the timesteps.
    """

    blocks = None
    cannot: ClassVar[Mapping[Capability, str]] = {
        Capability.SHARE: "calls of modular pipelines have conditions of their own; let each have a network of its own",
        Capability.DRAFT: "searches over modular pipelines have no drafts; leave draft out",
        Capability.COUPLE: "searches over modular pipelines couple no seeds; leave variety out",
        Capability.NOISE_PROMPTS: "searches over modular pipelines noise no prompts; leave variety out",
        Capability.DIFFERENTIATE: "the blocks of modular pipelines run without gradients; leave guide out",
    }

    def read_call(self, call: SimpleNamespace) -> None:
        given, name = vars(call), self.pipe.stock_class().__name__
        self._conditions = Conditions(lambda begun, seed: self._seeded(begun, seeded(seed)))
        self.workflow = workflow_for(name, given)
        self.network = self.workflow.network  # type: ignore[misc]
        self._holds_first_frame = self.workflow.keeps == "first frame"
        whole = self.pipe.blocks.get_execution_blocks(**{**given, "prompt": ""})
        parts = blocks.parts_of(whole)
        moving = self.workflow.frames_every is not None  # an edit keeps the shape of its image
        sized = moving and None not in (given.get("height"), given.get("width"))
        classic = self.pipe.classic is not None
        before = tuple(blocks.fitted(block, sized=sized, classic=classic) for block in parts.before)
        self._whole, self._parts = whole, parts._replace(before=before)
        guidance, given = guiders.parted(self.pipe, given, whole.input_names)
        blocks.check_inputs(whole, self.workflow.task, given, self.workflow.unread)
        check_lists(self.workflow, name, given)
        self._call, scale = opened(given), guidance.get("guidance_scale", 1.0)
        check_scheduler(self.pipe.scheduler)
        # Of this call alone: blocks set timesteps in the scheduler, and steps in the guiders.
        own = guiders.own(self.pipe, guidance, from_zero=self.workflow.scale_from_zero)
        vars(self.pipe).update(scheduler=copy.deepcopy(self.pipe.scheduler), **own)
        if self.net.config.get("time_cond_proj_dim") is not None:  # it reads the scale, and takes one pass
            self.pipe.guider.disable()
        if self.workflow.always_guided and guiders.passes(self.pipe) == 1:
            raise ValueError(f"the text encoder's block of {name} fails without guidance; "
                             "set guidance_scale to more than 1")  # fmt: skip
        blocks.check_decoder(self.pipe.vae, given)
        drawing, self._trial = self._tried()
        self._reads_negative = "negative_prompt" in whole.input_names
        # Otherwise the guider makes both passes on the prompt, as stock Stable Diffusion 3 does (diffusers 0.42).
        unwanted = self._reads_negative and self._trial.get("negative_prompt_embeds") is None
        if unwanted and guiders.passes(self.pipe) > 1:
            self._call["negative_prompt"] = ""  # as in the classic pipeline
            drawing, self._trial = self._tried()
        self._once, self._for_seed = self._parts.before[:drawing], self._parts.before[drawing:]
        self.layout = Plain(*(int(self._trial.get(name) or 0) for name in ("height", "width")))
        if "pos_embed_max_size" in self.net.config:  # networks of videos have no table of positions
            check_sides(self.net.config, self.pipe.vae_scale_factor, self.layout.height, self.layout.width)
        begin = len(self.pipe.scheduler.timesteps) - len(self._trial.get("timesteps"))
        arguments = {"eta": given["eta"]} if "eta" in given else {}
        schedule = laid_open(self.pipe.scheduler, begin=begin, step_arguments=arguments)
        self.set_up(schedule, InCall(scale, count=guiders.passes(self.pipe)))
        if self.workflow.frames_every is not None:
            every = int(getattr(self.pipe, self.workflow.frames_every))
            self.frames = (int(self._trial.get("num_frames")) - 1) // every * every + 1
        values = self._parts.loop.get_block_state(self._trial).as_dict()
        self.text_length = tuple((name, tuple(v.shape)) for name, v in values.items() if isinstance(v, Tensor))

    def _tried(self) -> tuple[int, CallState]:
        """The first block that draws noise, and the state after all blocks before the loop."""
        trial = blocks.start(self._whole, taken(self.pipe, {**self._call, "prompt": ""}))
        return blocks.first_that_draws(self.pipe, self._parts.before, trial, seeded(0))

    def _abilities(self) -> set[Capability]:
        found = super()._abilities()
        if "image" in self.workflow.given:
            found.add(Capability.EDIT)
        # Networks for inpainting (9 channels) read mask and image, and keep what lies outside by themselves.
        if self._holds_first_frame or (self.workflow.keeps == "mask" and self.net.config.in_channels != 9):
            found.add(Capability.MASK)
        return found

    # --- prompts and seeds ------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        # By identity, since prompts may hold pictures, which are slow to compare.
        known = {id(each.prompt): each for each in self._conditions.prompts}
        for prompt in (given := [Prompt.of(prompt) for prompt in prompts]):
            known[id(prompt)] = known.get(id(prompt)) or self._encoded(prompt)
        encoded = [known[id(prompt)] for prompt in given]
        latents = [self.workflow.latents.of(self._trial.get), *(each.ready["latents"] for each in encoded)]
        shapes = sorted({tuple(each.shape[1:]) for each in latents})
        if len(shapes) > 1:
            raise ValueError(f"prompts of one search share batches, so that their images must have one size, and these "
                             f"have latents of {shapes}: give height and width, or images of one size")  # fmt: skip
        self._conditions.hold(encoded)

    def _encoded(self, prompt: Prompt) -> Encoded:
        call = self._of_prompt(prompt)
        with ENCODING:
            state = blocks.start(self._whole, taken(self.pipe, call))
            begun = blocks.run(self.pipe, self._once, state)
        source = source_of(call["image"]).to(self.device) if Capability.EDIT in self.can else None
        return Encoded(prompt, begun, self._seeded(begun, seeded(0)), source)

    def forget_prompts(self) -> None:
        self._conditions.hold([])

    def _of_prompt(self, prompt: Prompt) -> dict[str, Any]:
        """The arguments of the call for a prompt, with its own inputs and negative prompt."""
        own = opened(prompt.inputs)
        check_lists(self.workflow, self.pipe.stock_class().__name__, own)
        if more := sorted(own.keys() - self._call.keys()):
            raise ValueError(f"the prompt {prompt.text[:60]!r} has {', '.join(more)} of its own, and this call is for "
                             "none; give all prompts of a search the same kinds of pictures")  # fmt: skip
        if prompt.negative is not None:
            if not self._reads_negative:
                raise ValueError(f"the prompt {prompt.text[:60]!r} has a negative one, and this pipeline reads none; "
                                 "leave it out")  # fmt: skip
            own |= {"negative_prompt": prompt.negative}
        return {**self._call, **own, "prompt": prompt.text}

    def sources(self, cond: Tensor) -> Tensor:
        found = [each.source for each in self._conditions.encoded(cond)]
        return torch.cat([source for source in found if source is not None])

    def _seeded(self, begun: CallState, generator: Generator) -> dict[str, Any]:
        """The state of the loop for a seed, from that after the blocks of the prompt."""
        state = blocks.forked(begun, generator=generator)
        for block in self._for_seed:
            state = blocks.run(self.pipe, [block], state)
            if state.get(DRAWN) is None:
                state.set(DRAWN, state.get("latents"))
        # What the loop reads, with the noise and what `keeps` needs.
        values: dict[str, Any] = self._parts.loop.get_block_state(state).as_dict()
        more = ("mask", "image_latents") if self.workflow.keeps == "mask" else ()
        values |= {"latents": self.workflow.latents.of(state.get), **{name: state.get(name) for name in more}}
        return {**values, NOISE: self._noise(state)}

    def _noise(self, state: CallState) -> Tensor:
        """The initial noise (1, ...) in a state of the loop."""
        if self.workflow.noise != TAKEN_OUT:
            others = self.workflow.latents.fields[1:]
            return self.workflow.latents.joined([state.get(name) for name in (self.workflow.noise, *others)])
        alpha, sigma = float(self.schedule.alpha[0]), float(self.schedule.sigma[0])
        return cast(Tensor, (state.get("latents") - alpha * state.get("image_latents")) / sigma)

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        if not (self.workflow.redraws or self.workflow.by_seed):
            return prompts
        return torch.tensor([self._conditions.number(p, s) for p, s in zip(prompts.tolist(), seeds, strict=True)])

    # --- sampling ---------------------------------------------------------------------------------------------------

    def init_latents(self, generators: Sequence[Generator]) -> Tensor:
        return torch.cat([self._seeded(self._conditions.prompts[0].begun, each)[NOISE] for each in generators])

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if self._holds_first_frame:
            return self._conditions.held(noise, cond)
        if not self.workflow.redraws:
            return noise
        # The blocks noised the image by a draw of their own: the difference of the two noises is added.
        own, latents = self._conditions.column(NOISE, cond), self._conditions.column("latents", cond)
        return latents + (float(self.schedule.sigma[0]) * (noise - own)).to(latents.dtype)

    def guided(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
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
        """A group (N,) for each of these positions: rows of one group go through the blocks together."""
        if self.workflow.together == ANY:
            return torch.zeros_like(step)
        return self._above(step).long() if self.workflow.together == ONE_EXPERT else step

    def _above(self, step: Tensor) -> Tensor:
        """Whether the first of two experts denoises each of these positions (N,)."""
        boundary: float = self.pipe.config.boundary_ratio * self.pipe.num_train_timesteps
        return self.schedule.timesteps[step] >= boundary

    def _denoised(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The guided output of the rows of one group."""
        scale, sigma = self.schedule.scale, self.schedule.sigma
        sigmas = sigma if scale is None else sigma / scale  # on another path: the network's own
        pipe = blocks.with_parts(self.pipe, scheduler=blocks.AlreadyScaled(self.pipe.scheduler, sigmas))
        values = collated(self._conditions.rows(at), self.workflow.rules)
        values |= self.workflow.latents.parted(x, self._trial.get) | {name: {} for name in self.workflow.scratch}
        state: Any = BlockState(**values)
        when = blocks.OneSide(t, bool(self._above(step)[0])) if self.workflow.together == ONE_EXPERT else t
        for block in self._parts.denoise:
            _, state = block(pipe, state, i=int(step[0]), t=when)
        made = state.as_dict()
        out = self.workflow.latents.joined([made[name] for name in self.workflow.latents.outputs])
        if self.workflow.latents.estimates:
            out = (x - out) / rows(sigmas[step], x)
        return out.float() if self.workflow.steps_in_float32 else out

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        prediction = super().predict(x, step, cond)
        if self._holds_first_frame:
            return prediction._replace(x0=self._conditions.held(prediction.x0, cond))
        if Capability.MASK not in self.can:
            return prediction
        return prediction._replace(x0=self._conditions.inside(prediction.x0, cond))

    def apply_mask(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        if Capability.MASK not in self.can:
            return x
        if self._holds_first_frame:
            return self._conditions.held(x, cond)
        alpha, sigma = (torch.cat([values, values.new_tensor([last])])[step]
                        for values, last in ((self.schedule.alpha, 1.0), (self.schedule.sigma, 0.0)))  # fmt: skip
        noise = self._conditions.column(NOISE, cond)
        return self._conditions.inside(x, cond, lambda image: rows(sigma, image) * noise + rows(alpha, image) * image)

    def settled(self, latents: Tensor, vae: Any) -> Tensor:
        # Loops cast back to the dtype of initial latents what their scheduler narrowed.
        return super().settled(latents, vae).to(self._trial.get("latents").dtype)

    # --- images -----------------------------------------------------------------------------------------------------

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        """Images or videos in [0, 1], as the blocks after the loop make them."""
        return cast(Tensor, self._ended(self._parts.end, vae, x0).get(self.workflow.output))

    def seen(self, latents: Tensor) -> Tensor:
        return self.workflow.latents.parted(latents, self._trial.get)["latents"]

    def sound(self, latents: Tensor) -> Tensor | None:
        if not self._parts.sound:
            return None
        return cast(Tensor, self._ended(self._parts.sound, self.pipe.vae, latents).get(SOUND))

    def _ended(self, end: Sequence[Block], vae: Any, latents: Tensor) -> CallState:
        """The state after these blocks of the pipeline's end have run on finished latents (N, ...)."""
        names = {name for block in end for name in block.input_names if name in self._trial.values}
        batch = collated([{name: self._trial.get(name) for name in names}] * len(latents), self.workflow.rules)
        fields = self.workflow.latents.parted(self.settled(latents, vae), self._trial.get)
        state = blocks.forked(self._trial, **{**batch, "batch_size": len(latents), **fields, **self.workflow.ends_with})
        return blocks.run(blocks.with_parts(self.pipe, vae=vae), end, state)

    def preview(self, x0: Tensor) -> Tensor:
        try:
            return super().preview(x0)
        except AttributeError as error:  # of a preview VAE, which the blocks after the loop read
            raise ValueError(f"the blocks of {self.pipe.stock_class().__name__} cannot decode by preview_vae: {error}; "
                             "set pipe.preview_vae to None") from error  # fmt: skip

    def meta_twin(self) -> Self:
        twin = super().meta_twin()
        twin._conditions = self._conditions.on_meta()
        return twin

    def convert(self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> None:
        moved = path is not None or not isinstance(times, str) or times != "pipeline"
        if self.workflow.redraws and (moved or self.schedule.prediction != "flow"):
            raise ValueError("an image is redrawn from where its strength says, on the model's own path and times, and "
                             "for other models than flows by the scheduler's own step; leave kernel, path and times "
                             "out")  # fmt: skip
        if self._holds_first_frame and path is not None:
            raise ValueError("the first frame is held without noise, and another path would scale it; leave path out")
        super().convert(path, times)
