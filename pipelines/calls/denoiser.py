"""Any pipeline's stock call as a Denoiser: a frame for each row of a batch, wherever that is in the call."""

from __future__ import annotations

import copy
import functools
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import opened
from ttsnap.pipelines.calls import guiders, loops
from ttsnap.pipelines.calls.drafts import DraftCall, DraftRow, Told, draft_call, reads_arrival
from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.ends import End
from ttsnap.pipelines.calls.frame import CallFrame, StockCall
from ttsnap.pipelines.calls.hub import ONE_BY_ONE, Hub
from ttsnap.pipelines.calls.joining import tensors_in
from ttsnap.pipelines.calls.pictures import images_of, pictures_for, sound_of, source_of
from ttsnap.pipelines.calls.pool import Condition, FramePool
from ttsnap.pipelines.calls.questions import NOWHERE, Drawn, PartCall
from ttsnap.pipelines.calls.rehearsal import Rehearsal, first_shapes, rehearse
from ttsnap.pipelines.calls.schedules import schedule_of
from ttsnap.pipelines.calls.tasks import PICTURES
from ttsnap.pipelines.denoiser import NO_FLOW_MAP, PipelineDenoiser
from ttsnap.pipelines.guidance import SCALES, Guidance, InCall
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory import flops
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.pipelines.quiet import quiet
from ttsnap.pipelines.suspended import Returned
from ttsnap.sampling.denoiser import Capability, Costs
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

CASTING = threading.Lock()
"""Held while a call ends that changes the dtype of a part to decode: calls in other threads share it."""
FORMS = ("pt", "np", "pil")
"""Of pictures that stock calls return, the exact ones first; a call may make others than those."""
TYPICAL = "a red circle and a blue square"
"""The prompt of a rehearsal."""


class CallsDenoiser(PipelineDenoiser):
    """One stock call of a pipeline, whose frames stand at the steps of rows.

    A frame is a cursor, and its latents are put in: any frame of a row's condition that stands at the row's step will
    do. Where none does, one is begun, and led there without the network.
    """

    blocks = None
    cannot: ClassVar[Any] = {
        Capability.SHARE: "stock calls have conditions of their own; let each have a network of its own",
        Capability.COUPLE: "searches over stock calls couple no seeds; leave variety out",
        Capability.DIFFERENTIATE: "stock calls run without gradients; leave guide out",
    }
    rehearsed: Rehearsal
    reads_scale = "guidance_embeds"
    _whole: Schedule
    """Of the call from its first step on, of which `schedule` is the end where particles begin later."""
    _draft: DraftCall | None = None
    """Of a copy that evaluates as a drafter does."""
    _arrives = False
    """Whether it is told to arrive at the end."""
    _converted = False
    """Whether frames are put to other timesteps than their scheduler's, with latents in the network's scale."""

    def read_call(self, call: SimpleNamespace) -> None:
        self._prompts, self._calls = list[Prompt](), list[StockCall]()
        self._draft_calls = dict[tuple[int, float | None, bool], tuple[Any, DraftCall]]()
        self._numbers, self._seeded = dict[tuple[int, int], int](), list[Condition]()
        self._check_lists(vars(call))
        self._given = self._set_guiders(opened(vars(call)))
        self._unseen = self._unheard = frozenset[str]()
        self.rehearsed = rehearsed = self._in_a_form_that_it_makes()
        hooks = any(guiders.puts_hooks(part) for part in self.pipe.components.values())
        if changed := {*rehearsed.held, *(rehearsed.networks if hooks else ())}:
            # Frames put processors and hooks into parts, which no other search may see.
            vars(self.pipe).update({name: shared_copy(getattr(self.pipe, name)) for name in changed})
            self.rehearsed = rehearsed = self._rehearsed()
        made = images_of(rehearsed.made)
        self.layout = Plain(*made.shape[-2:])
        self.frames = len(made) if made.ndim > 3 else None
        self.network = rehearsed.networks[0]  # type: ignore[misc]
        self.text_length = tuple(rehearsed.latents.shape), rehearsed.passes, rehearsed.nfe_flops
        self.hub = Hub(rehearsed.networks, rehearsed.held, alone=hooks)
        self._frames = FramePool(self.hub, remembers=rehearsed.remembers)
        self.set_up(schedule_of(rehearsed), InCall(self._scale(), count=rehearsed.passes))
        if rehearsed.draws_last and getattr(self.kernel, "stochastic", False):
            raise ValueError(
                f"search cannot use {type(self.schedule.scheduler).__name__} here: the call draws noise after its last "
                "step, too, from the generator of its steps; set pipe.scheduler to one that draws none"
            )
        plain = self._end()
        self._unseen, self._unheard = self._apart(plain)
        self._decode_flops = plain.all_flops(self._unseen)
        if self._given["output_type"] == "pt" and not self._are_pictures(plain.made):
            self._given["output_type"] = "np"  # as in Kandinsky, whose tensors are not in [0, 1]

    def _set_guiders(self, given: dict[str, Any]) -> dict[str, Any]:
        """Set the guiders of a modular pipeline, and return the arguments that its blocks take."""
        vars(self.pipe).update(guiders.set_by(self.pipe, given))
        takes = self.pipe.blocks.input_names if loops.is_modular(self.pipe.stock_class()) else given
        return {name: value for name, value in given.items() if name in takes}

    @classmethod
    def takes_one_each(cls, pipe: Any, call: Mapping[str, Any]) -> bool:
        """Whether lists of pictures in a stock call are for an image each, and not all for one, as references are.

        With a single prompt the stock call then makes several images, or fails.
        """
        seen: Any = cls.__new__(cls)
        seen.pipe = copy.copy(pipe)
        first = {name: value[0] for name, value in pictures_for(call).items()}
        made = []
        with quiet(loops.LOGGER), torch.no_grad():
            for given in (call, {**call, **first}):
                try:
                    seen._given = {**seen._set_guiders(opened(given)), "output_type": FORMS[0]}
                    made.append(first_shapes(seen._stock_call(Prompt(TYPICAL))))
                except Exception:
                    return True
        return made[0] != made[1]

    def _check_lists(self, call: Mapping[str, Any]) -> None:
        """ValueError for several pictures where the stock call takes one for each image."""
        several = pictures_for(call)
        if several and self.takes_one_each(self.pipe, call):
            task = self.pipe.task_of(call)
            counts = " and ".join(f"one {name}, got {len(values)}" for name, values in several.items())
            raise ValueError(f"{task} takes for each prompt {counts}")

    def _in_a_form_that_it_makes(self) -> Rehearsal:
        """The rehearsal of the call with the first of FORMS that it does not refuse."""
        for form in FORMS:
            self._given["output_type"] = form
            try:
                with quiet(loops.LOGGER):
                    return self._rehearsed()
            except ValueError as refused:
                if "output_type" not in str(refused) or form == FORMS[-1]:
                    raise
        raise AssertionError("each form is refused or made")

    def _rehearsed(self) -> Rehearsal:
        typical = self._stock_call(Prompt(TYPICAL))
        self._typical = replace(typical, dummies=Dummies(self._shown(typical)))
        with torch.no_grad():
            return rehearse(self._typical)

    def _shown(self, call: StockCall) -> dict[Any, Any]:
        """What calls of the pipeline's parts make, which is kept with the pipeline while its parts are the same."""
        parts = list(call.modules.values())
        memo: flops.Memo = self.pipe._search_memo
        return memo.of(("shown", *map(weakref.ref, parts), *map(flops.filling, parts)))

    def _are_pictures(self, tensors: Any) -> bool:
        """Whether tensors that the call returned show what its arrays do, in [0, 1]."""
        arrays = self._end(output_type="np").made
        return torch.allclose(images_of(tensors).float().cpu(), images_of(arrays), atol=1e-2)

    @torch.no_grad()
    def _end(
        self, fill: Callable[[str], float] = lambda part: 0.0, *, output_type: str | None = None, **parts: Any
    ) -> End:
        """The end of a stock call whose parts answer with these numbers. parts: in the place of the pipeline's."""
        call = self._stopping(self._typical)
        if output_type is not None:
            call = replace(call, arguments={**call.arguments, "output_type": output_type})
        end = End()
        frame = self._frames.begin(call, seeded(0), len(self._whole.timesteps), **parts)
        frame.go_on(self.rehearsed.latents)
        while isinstance(asked := frame.question, PartCall):
            end.flops[asked.part] += call.dummies.shown(frame.real(asked), asked).flops
            end.given[asked.part] += tensors_in((asked.args, asked.kwargs))
            frame.answer(call.dummies.of(frame.real(asked), asked, fill(asked.part)))
        end.made = _returned(frame)
        return end

    def _apart(self, plain: End) -> tuple[frozenset[str], frozenset[str]]:
        """The parts of the end that pictures do without, and those that their sound does without."""
        if sound_of(plain.made) is None:
            return frozenset(), frozenset()
        others = {
            part: self._end(lambda asked, part=part: 0.5 * (asked == part))  # type: ignore[misc]
            for part in plain.given
        }
        return plain.without(others, images_of), plain.without(others, sound_of)

    def _stock_call(self, prompt: Prompt) -> StockCall:
        own = opened(prompt.inputs)
        if prompt.negative is not None:
            own |= {"negative_prompt": prompt.negative}
        if "prompt" in self.pipe.stock_arguments():
            own |= {"prompt": prompt.text}
        return StockCall(self.pipe, self.pipe.stock_call(), {**self._given, **own})

    @property
    def _puts_in(self) -> bool:
        """Whether latents can be put in at any step, for any particle."""
        return self.rehearsed.places != NOWHERE and not self.rehearsed.remembers

    def _abilities(self) -> set[Capability]:
        found = super()._abilities()
        if not self._puts_in:
            found.discard(Capability.PATH)
        if not (self._puts_in and self._known_path):
            found.discard(Capability.DRAFT)
        if "vae" not in self.pipe.components:  # which a preview takes the place of
            found.discard(Capability.PREVIEW)
        return found | {Capability.EDIT} if "image" in self._given else found

    @property
    def _redraws(self) -> bool:
        """Whether first latents are a noised picture, which each prompt may have of its own."""
        pictured = any(self._given.get(name) is not None for name in PICTURES)
        return pictured and "strength" in self.pipe.stock_arguments()

    def must(self, can: Capability) -> None:
        super().must(can)
        if can is Capability.DRAFT and not self._puts_in:
            raise ValueError("no latents can be put into this call, or its steps depend on those before; leave draft "
                             "out")  # fmt: skip
        if can is Capability.DRAFT and not self._known_path:
            raise ValueError(f"drafts are told times of the path that a model was trained on, which is not known of "
                             f"{type(self.schedule.scheduler).__name__}; leave draft out")  # fmt: skip

    def set_up(self, schedule: Schedule, guidance: Guidance) -> None:
        super().set_up(schedule, guidance)
        self._whole = schedule
        self.mixes_noise = not self._begins_by_seed
        self.forget_prompts()

    def convert(self, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> None:
        moved = path is not None or not isinstance(times, str) or times != "pipeline"
        if self.rehearsed.remembers or (moved and not self._puts_in):
            raise ValueError("no latents can be put into this call; leave kernel, path and times out")
        converted = moved or self.schedule.prediction != "flow"
        if converted and (self._begins_later or self.rehearsed.by_seed):
            raise ValueError("this call keeps more of a seed than its latents, or begins at a later step, on the "
                             "model's own path; leave kernel, path and times out")  # fmt: skip
        super().convert(path, times)
        self._converted = converted
        self.forget_prompts()

    @property
    def _known_path(self) -> bool:
        """Whether it is known on which path between data and noise the model was trained."""
        try:
            own_path(self.schedule)
        except ValueError:
            return False
        return True

    @property
    def _begins_later(self) -> bool:
        """Whether the call begins at a later step than its scheduler, with a picture under noise."""
        return len(self.rehearsed.scheduler.timesteps) > len(self.rehearsed.times)

    def begin_later(self, step: int, image_nfe: int) -> None:
        if self._begins_later:
            raise ValueError("particles of this call begin with a picture under noise, not with noise; set finish to "
                             "noise, so that drafts only rank")  # fmt: skip
        whole = self._whole
        super().begin_later(step, image_nfe)
        self._whole = whole

    @property
    def _ahead(self) -> int:
        """Evaluations of the call before the first position of `schedule`."""
        return len(self._whole.timesteps) - len(self.schedule.timesteps)

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        return height or self.layout.height, width or self.layout.width

    # --- prompts ----------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        # By identity, since prompts may hold pictures, which are slow to compare.
        known = {id(prompt): call for prompt, call in zip(self._prompts, self._calls, strict=True)}
        self._prompts = [Prompt.of(prompt) for prompt in prompts]
        self._calls = [known.get(id(prompt)) or self._encoded(prompt) for prompt in self._prompts]
        self._numbers, self._seeded = {}, []
        self._frames.forget_others({id(call) for call in self._calls})

    @torch.no_grad()
    def _encoded(self, prompt: Prompt) -> StockCall:
        """The call of a prompt. ValueError for pictures of its own with which it makes other latents than the rest."""
        call, wanted = self._stopping(self._stock_call(prompt)), self.rehearsed.fields.shapes
        if not prompt.inputs:
            return call
        self._check_lists({**self._given, **prompt.inputs})
        made = first_shapes(replace(call, places=None, fields=None))
        if made != wanted:
            raise ValueError(
                "prompts of one search share batches, so that their images must have one size, and "
                f"{prompt.text[:60]!r} has latents of {_sizes(made)}, others of {_sizes(wanted)}: "
                "give height and width, or one picture of one size for each"
            )
        return call

    def _stopping(self, call: StockCall) -> StockCall:
        """A call whose frames stop where the rehearsal found that they can."""
        found = self.rehearsed
        call = replace(
            call,
            places=found.places,
            fields=found.fields,
            networks=frozenset(found.networks),
            dummies=found.dummies,
            asleep=self._unseen,
            hooked=found.hooked,
        )
        if self._converted:
            told = self._converted_told()
            return replace(call, times=told.times, sigmas=told.sigmas, scaled=_unscaled)
        if self._whole.scale is None:
            return call
        # Frames must not hold this object, with which they end.
        return replace(call, scaled=functools.partial(_scaled, self._whole))

    def forget_prompts(self) -> None:
        self.encode([])

    def sources(self, cond: Tensor) -> Tensor:
        images = [source_of(self._condition(i).stock.arguments["image"]) for i in cond.tolist()]
        return torch.cat(images).to(self.device)

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        if not self._begins_by_seed:
            return prompts
        return torch.tensor([self._number(pair) for pair in zip(prompts.tolist(), seeds, strict=True)])

    @property
    def _begins_by_seed(self) -> bool:
        """Whether first latents are of a prompt and a seed, in place of noise for any prompt."""
        return self.rehearsed.by_seed or self._redraws

    def _number(self, pair: tuple[int, int]) -> int:
        """The condition of a prompt and a seed."""
        if pair not in self._numbers:
            self._numbers[pair] = len(self._calls) + len(self._seeded)
            self._seeded.append(Condition(self._calls[pair[0]], pair[1]))
        return self._numbers[pair]

    def _condition(self, number: int) -> Condition:
        n = len(self._calls)
        if number < n:
            return Condition(self._calls[number], 0)
        return self._seeded[number - n]

    def trim(self, particles: int) -> None:
        self._frames.trim(particles)

    def tried(self) -> Cost:
        rows, self.hub.tried = self.hub.tried, Counter()
        most = Counter[str]()  # of parts that one evaluation or decode calls, that with the most rows
        for (part, instead), n in rows.items():
            kind = "nfe" if part in self.rehearsed.networks else "previews" if instead else "decodes"
            most[kind] = max(most[kind], n)
        return Cost(**{**most, "nfe": math.ceil(most["nfe"] / self.rehearsed.passes)})

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(ONE_BY_ONE.format(part) for part in sorted(self.hub.apart))

    # --- sampling ---------------------------------------------------------------------------------------------------

    def init_latents(self, generators: Sequence[Generator]) -> Tensor:
        return torch.cat([self._noise(generator) for generator in generators])

    def _noise(self, generator: Generator) -> Tensor:
        """The first latents (1, ...) of the first prompt, after which the generator stands as in the stock call."""
        condition = Condition(self._calls[0], 0)
        frame = self._frames.begin(condition.stock, generator)
        if not self.rehearsed.by_seed and self.rehearsed.fields.plain:
            made = _drawn(frame)
            self._frames.keep(condition, frame)
            return made
        if isinstance(frame.question, Drawn):
            frame.go_on(None)
            self.hub.run([frame], networks=False)
        return self._first(frame)

    def _first(self, frame: CallFrame) -> Tensor:
        """The first latents (1, ...) of a frame that waits for its network, which is not asked."""
        while isinstance(asked := frame.question, PartCall):
            frame.answer(self.rehearsed.dummies.of(frame.real(asked), asked))
        step: Any = asked
        made: Tensor = step.sample
        return made

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if not self._begins_by_seed:
            return noise
        return torch.cat([self._begins(self._condition(number)) for number in cond.tolist()])

    def _begins(self, condition: Condition) -> Tensor:
        """The first latents (1, ...) of a condition, which differ from seed to seed."""
        frame = self._frames.begin(condition.stock, seeded(condition.seed))
        if isinstance(frame.question, Drawn) and not self.rehearsed.fields.plain:
            frame.go_on(None)
            self.hub.run([frame], networks=False)
        if isinstance(frame.question, Drawn):
            made = _drawn(frame)
            self._frames.keep(self._followed(condition), frame)
            return made
        return self._first(frame)

    def _followed(self, condition: Condition) -> Condition:
        """What frames are begun for that follow rows of a condition."""
        return condition if self.rehearsed.by_seed else condition._replace(seed=0)

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        conditions = [self._followed(self._condition(number)) for number in cond.tolist()]
        indices = (step + self._ahead).tolist()
        frames = [self._frames.take(*pair) for pair in zip(conditions, indices, strict=True)]
        scaled = self.schedule.scaled(x, step) if self._converted else x
        given = laid_out(scaled, self.rehearsed.latents).split(1)
        for frame, row in zip(frames, given, strict=True):
            if not isinstance(frame.question, PartCall):  # else it has begun with the latents of its seed
                frame.go_on(row)
        self.hub.run(frames)
        asked: list[Any] = [frame.question for frame in frames]
        out = torch.cat([each.out for each in asked])
        changed = any(each.sample is not row for each, row in zip(asked, given, strict=True))
        seen = torch.cat([each.sample for each in asked]) if changed and not self._converted else x
        for condition, frame in zip(conditions, frames, strict=True):
            self._frames.keep(condition, frame)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        x0 = self.schedule.x0(seen, _mean(out, x), step)
        return Prediction(out, x0, seen if changed else None)

    # --- drafts -----------------------------------------------------------------------------------------------------

    def by_drafter(self, net: Any, scale: float | None, *, arrives: bool = False) -> Self:
        key = id(net), scale, arrives
        if key not in self._draft_calls:
            self._draft_calls[key] = net, self._draft_call(net, scale, arrives)
        _, found = self._draft_calls[key]
        twin = self.by(found.net, drafts=None, _stepped=None, _draft=found, _arrives=arrives)
        twin.guidance, twin.passes_per_nfe = InCall(count=found.passes), found.passes
        return twin

    def _draft_call(self, net: Any, scale: float | None, arrives: bool) -> DraftCall:
        if scale is not None and self._scale_name is None:
            raise ValueError(f"this draft is made at guidance {scale:g}, which no argument of this call says")
        guided = None if scale is None else {str(self._scale_name): scale}
        call, rehearsed = self._stopping(self._typical), self.rehearsed
        own = shared_copy(net) if rehearsed.held or self.hub.alone else net
        frames = FramePool(Hub(rehearsed.networks, alone=self.hub.alone), remembers=False)
        made = draft_call(rehearsed, call, own, frames, {} if arrives else guided)
        if arrives and not reads_arrival(made, call, Told.of(rehearsed.scheduler), rehearsed.latents):
            raise ValueError(NO_FLOW_MAP)
        return made

    def draft_flops(self, twin: Callable[[], Self]) -> float:
        found = twin()._draft
        assert found is not None
        return found.flops / found.passes

    def guided(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        assert self._draft is not None  # as a drafter, in whose frames each row is told its timestep
        asked = zip((step + self._ahead).tolist(), t.tolist(), at.tolist(), strict=True)
        rows = [DraftRow(self._followed(self._condition(number)), i, self._told(i, told)) for i, told, number in asked]
        return _mean(self._draft.evaluate(rows, laid_out(x, self.rehearsed.latents)), x)

    def _told(self, index: int, timestep: float) -> Told:
        """What the scheduler of a frame says that is to evaluate at an index, but is told this timestep."""
        own = self._converted_told() if self._converted else Told.of(self.rehearsed.scheduler)
        position = len(own.times) - len(self._whole.timesteps) + index
        told = own.at(position, timestep)
        return told.arriving(position) if self._arrives else told._replace(sigmas=None)

    def _converted_told(self) -> Told:
        """What the scheduler of a frame says at the times to which the call was converted."""
        whole = self._whole
        times = whole.timesteps.float()
        if whole.prediction != "flow":
            return Told(times)
        levels = times / timestep_unit(whole, own_path(whole))
        return Told(times, torch.cat([levels, torch.zeros(1)]))

    @property
    def _scale_name(self) -> str | None:
        """The argument of the call that guides by two passes or, where the network reads a scale, that one."""
        names = [name for name in SCALES if name in self._typical.takes]
        return names[-1 if self.embeds else 0] if names else None

    def _scale(self) -> float:
        """The guidance scale of the call, 1 where it has none."""
        if (name := self._scale_name) is None:
            return 1.0
        value = self._given.get(name, self._typical.takes[name].default)
        return float(value) if isinstance(value, int | float) else 1.0

    # --- images -----------------------------------------------------------------------------------------------------

    def decode(self, x0: Tensor) -> Tensor:
        return self.decode_rows(x0, torch.zeros(len(x0), dtype=torch.long))

    def decode_rows(self, x0: Tensor, cond: Tensor) -> Tensor:
        return self._ended(x0, cond)

    def preview(self, x0: Tensor) -> Tensor:
        return self._ended(x0, torch.zeros(len(x0), dtype=torch.long), vae=self.pipe.preview_vae)

    def sound(self, latents: Tensor) -> Tensor | None:
        if sound_of(self.rehearsed.made) is None:
            return None
        call = replace(self._stopping(self._typical), asleep=self._unheard)
        frame = self._frames.begin(call, seeded(0), len(self._whole.timesteps))
        frame.go_on(latents.to(self._stepped or self.rehearsed.latents.dtype))
        self.hub.run([frame])
        return sound_of(_returned(frame))

    def _ended(self, x0: Tensor, cond: Tensor, **parts: Any) -> Tensor:
        """Images in [0, 1] of finished latents (N, ...), by the end of the stock call."""
        x0 = x0.to(self._stepped or self.rehearsed.latents.dtype)
        last, frames = len(self._whole.timesteps), list[CallFrame]()
        for number in cond.tolist():
            condition = self._followed(self._condition(number))
            if parts:
                frames.append(self._frames.begin(condition.stock, seeded(condition.seed), last, **parts))
            else:
                frames.append(self._frames.take(condition, last, ends=True))
        latents = laid_out(x0, self.rehearsed.latents).split(1)
        ends = [[pair] for pair in zip(frames, latents, strict=True)]
        if not self.rehearsed.casts:
            ends = [list(chain.from_iterable(ends))]
        for pairs in ends:
            with CASTING if self.rehearsed.casts else nullcontext():
                for frame, row in pairs:
                    frame.go_on(row)
                self.hub.run([frame for frame, _ in pairs])
        images = [images_of(_returned(frame)) for frame in frames]
        self.image_dtype = images[0].dtype
        return torch.stack(images).to(x0.device, torch.promote_types(self.image_dtype, torch.float32))

    def costs(self) -> Costs:
        preview = self._preview_flops() if Capability.PREVIEW in self.can else 0.0
        draft = 0.0 if self.drafts is None else self.drafts.flops()
        return Costs(self.rehearsed.nfe_flops, self._decode_flops, preview, draft)

    def _preview_flops(self) -> float:
        """FLOPs of the end of a call whose decoder is the preview VAE. ValueError for one that it cannot use."""
        try:
            return self._end(vae=self.pipe.preview_vae).all_flops(self._unseen)
        except AttributeError as error:  # of the preview VAE, which the end of the stock call reads
            raise ValueError(f"the stock call of {self.pipe.stock_class().__name__} cannot decode by preview_vae: "
                             f"{error}; set pipe.preview_vae to None") from error  # fmt: skip

    def memo(self, decoder: str = "decode") -> MutableMapping[Any, Any]:
        memo: flops.Memo = self.pipe._search_memo
        networks = [weakref.ref(getattr(self.pipe, name)) for name in self.rehearsed.networks]
        return memo.of((*networks, decoder, self.text_length, tuple(vars(self.layout).items())))


def _sizes(shapes: Sequence[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x (N, ...) with the memory layout of `like` (1, ...), on which the last digits of a matrix product depend."""
    strides = like.stride()
    axes = [0, *sorted(range(1, x.ndim), key=lambda axis: -strides[axis])]
    if axes == sorted(axes):
        return x
    return x.permute(axes).contiguous().permute([axes.index(axis) for axis in range(x.ndim)])


def _mean(out: Tensor, x: Tensor) -> Tensor:
    """A network's output without a variance, which some predict, too."""
    return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def _unscaled(x: Tensor, index: int) -> Tensor:
    """Latents that were scaled before they were put in."""
    return x


def _scaled(schedule: Schedule, x: Tensor, index: int) -> Tensor:
    """The network's input of latents (n, ...), or of one number, at an index."""
    rows = x if x.ndim else x[None]
    made = schedule.scaled(rows, torch.full([len(rows)], index))
    return made if x.ndim else made[0]


def _drawn(frame: CallFrame) -> Tensor:
    """The first latents of a frame that has just drawn them."""
    asked = frame.question
    assert isinstance(asked, Drawn)
    made: Tensor = asked.made
    return made


def _returned(frame: CallFrame) -> Any:
    asked = frame.question
    assert isinstance(asked, Returned)
    return asked.value
