"""Any pipeline's stock call as a Denoiser: a frame for each row of a batch, wherever it stands.

Latents are put into frames, which call the network together and step apart. What a family knows of
its pipeline, a rehearsal has found here.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.calls.conditions import Conditions
from ttsnap.pipelines.calls.drafts import DraftCall, DraftRow, check_arrival, draft_call
from ttsnap.pipelines.calls.ends import Ends
from ttsnap.pipelines.calls.first_latents import FirstLatents
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.given import GivenCall
from ttsnap.pipelines.calls.gradients import follow
from ttsnap.pipelines.calls.hub import ONE_BY_ONE, Hub
from ttsnap.pipelines.calls.opening import check_lists, open_call
from ttsnap.pipelines.calls.pictures import alike, images_of, main_of, sound_of, source_of
from ttsnap.pipelines.calls.places import NOWHERE
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.run import first_shapes
from ttsnap.pipelines.calls.schedules import schedule_of
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.times import FrameTimes
from ttsnap.pipelines.calls.values import version_of
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Guidance, InCall
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory import flops
from ttsnap.pipelines.output import converted
from ttsnap.sampling.denoiser import Capability, Costs
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded


class CallsDenoiser(PipelineDenoiser):
    """One stock call of a pipeline, whose frames stand at the steps of rows."""

    blocks = None
    cannot: ClassVar[Any] = {
        Capability.SHARE: (
            "stock calls have conditions of their own; let each have a network of its own"
        ),
        Capability.COUPLE: "searches over stock calls couple no seeds; leave variety out",
    }
    reads_scale = "guidance_embeds"
    returns_more = False
    """Whether what comes back is more than the pictures that a search sees: sound, another range."""
    given: GivenCall
    rehearsed: Rehearsal
    hub: Hub
    ends: Ends
    _times: FrameTimes
    """Of the whole call, of which `schedule` is the end where particles begin later."""
    _draft: DraftCall | None = None
    """Of a copy that evaluates as a drafter does."""
    _arrives = False
    """Whether it is told to arrive at the end."""

    def read_call(self, call: SimpleNamespace) -> None:
        self._prompts, self._calls = list[Prompt](), list[StockCall]()
        self._draft_calls = dict[tuple[int, float | None, bool], tuple[Any, DraftCall]]()
        self.given, self._typical, self.rehearsed, hooks = open_call(self.pipe, vars(call))
        found = self.rehearsed
        self.layout = Plain(*found.image[-2:])
        self.frames = found.image[0] if len(found.image) > 3 else None
        self.network = found.networks[0]  # type: ignore[misc]
        self.text_length = tuple(found.latents.shape), found.passes, found.nfe_flops
        self.hub = Hub(found.networks, found.held, alone=hooks)
        self._frames = FramePool(self.hub, remembers=found.remembers)
        self._first = FirstLatents(self._frames, found)
        self.ends = Ends(self._frames, found)
        schedule = schedule_of(found)
        self._times = FrameTimes(schedule)
        scale = self.given.scale(self._typical, embeds=self.embeds)
        self.set_up(schedule, InCall(scale, count=found.passes))
        if found.draws_last and getattr(self.kernel, "stochastic", False):
            raise ValueError(
                f"search cannot use {type(self.schedule.scheduler).__name__} here: the call draws "
                "noise after its last step, too, from the generator of its steps; set "
                "pipe.scheduler to one that draws none"
            )
        plain = self.ends.know(self._stopping(self._typical), self._times.last)
        self._decode_flops = plain.all_flops(self.ends.unseen)
        if self.given.arguments["output_type"] == "pt" and not self._are_pictures(plain.made):
            self.given = self.given.returning("np")  # as in Kandinsky

    def _are_pictures(self, tensors: Any) -> bool:
        """Whether tensors that the call returned show what its arrays do, in [0, 1]."""
        arrays = self._dummy_of("np")
        pairs = zip(images_of(tensors), images_of(arrays), strict=True)  # small, as allclose copies
        return all(torch.allclose(one.float().cpu(), other, atol=1e-2) for one, other in pairs)

    def must_return(self, form: str) -> None:
        made = self._dummy_of(form)
        seen = [images_of(self._dummy_of(self.given.arguments["output_type"]))]
        own = converted(seen, form, torch.float32, self.device)
        self.returns_more = sound_of(made) is not None or not alike(main_of(made), own)

    def _dummy_of(self, form: str) -> Any:
        """What the call returns in a form, with dummies."""
        call = self._stopping(_returning(form, self._typical))
        return self.ends.seen(call, self._times.last).made

    # --- what it can do ---------------------------------------------------------------------------

    @property
    def _puts_in(self) -> bool:
        """Whether latents can be put in at any step, for any particle."""
        return self.rehearsed.places != NOWHERE and not self.rehearsed.remembers

    @property
    def _begins_later(self) -> bool:
        """Whether the call begins later than its scheduler, with a picture under noise."""
        return self.rehearsed.begin > 0

    @property
    def _begins_by_seed(self) -> bool:
        """Whether first latents are of a prompt and a seed, in place of noise for any prompt."""
        return self.rehearsed.by_seed or self.given.redraws

    def _abilities(self) -> set[Capability]:
        found = super()._abilities()
        if not self._puts_in:
            found.discard(Capability.PATH)
        if not (self._puts_in and self._times.known_path):
            found.discard(Capability.DRAFT)
        if "vae" not in self.pipe.components:  # which a preview takes the place of
            found.discard(Capability.PREVIEW)
        return found | {Capability.EDIT} if self.given.edits else found

    def must(self, can: Capability) -> None:
        super().must(can)
        if can is Capability.DRAFT and not self._puts_in:
            raise ValueError(
                "no latents can be put into this call, or its steps depend on those before; leave "
                "draft out"
            )
        if can is Capability.DRAFT and not self._times.known_path:
            raise ValueError(
                "drafts are told times of the path that a model was trained on, which is not known "
                f"of {type(self.schedule.scheduler).__name__}; leave draft out"
            )

    # --- when it steps ----------------------------------------------------------------------------

    def set_up(self, schedule: Schedule, guidance: Guidance) -> None:
        self._times = replace(self._times, whole=schedule)
        super().set_up(schedule, guidance)
        self.mixes_noise = not self._begins_by_seed
        self.forget_prompts()

    def convert(
        self,
        path: str | Interpolant | None = None,
        times: str | Tensor = "pipeline",
    ) -> None:
        moved = path is not None or not isinstance(times, str) or times != "pipeline"
        if self.rehearsed.remembers or (moved and not self._puts_in):
            raise ValueError(
                "no latents can be put into this call; leave kernel, path and times out"
            )
        converted = moved or self.schedule.prediction != "flow"
        if converted and (self._begins_later or self.rehearsed.by_seed):
            raise ValueError(
                "this call keeps more of a seed than its latents, or begins at a later step, on "
                "the model's own path; leave kernel, path and times out"
            )
        super().convert(path, times)
        self._times = replace(self._times, converted=converted)
        self.forget_prompts()

    def begin_later(self, step: int) -> None:
        if self._begins_later:
            raise ValueError(
                "particles of this call begin with a picture under noise, not with noise; set "
                "finish to noise, so that drafts only rank"
            )
        whole = self._times
        super().begin_later(step)
        self._times = whole

    def _indices(self, step: Tensor) -> list[int]:
        """The indices of frames at positions (N,) of `schedule`."""
        before = self._times.before(self.schedule)
        found: list[int] = (step + before).tolist()
        return found

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        return height or self.layout.height, width or self.layout.width

    # --- prompts ----------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        # By identity, since prompts may hold pictures, which are slow to compare.
        known = dict(zip(map(id, self._prompts), self._calls, strict=True))
        asked = [Prompt.of(prompt) for prompt in prompts]
        self._calls = [known.get(id(prompt)) or self._encoded(prompt) for prompt in asked]
        self._prompts = asked
        self._conditions = Conditions(self._calls, by_seed=self.rehearsed.by_seed)
        self._frames.forget_others(self._calls)

    def forget_prompts(self) -> None:
        self.encode([])

    @torch.no_grad()
    def _encoded(self, prompt: Prompt) -> StockCall:
        """The call of a prompt. ValueError where its latents have another shape than others'."""
        call = self._stopping(self.given.for_prompt(prompt))
        if not prompt.inputs:
            return call
        check_lists(self.pipe, {**self.given.arguments, **prompt.inputs})
        wanted = self.rehearsed.fields.shapes
        made = first_shapes(replace(call, places=None, fields=None))
        if made != wanted:
            raise ValueError(
                "prompts of one search share batches, so that their images must have one size, and "
                f"{prompt.text[:60]!r} has latents of {_sizes(made)}, others of {_sizes(wanted)}: "
                "give height and width, or one picture of one size for each"
            )
        return call

    def _stopping(self, call: StockCall) -> StockCall:
        """A call whose frames stop where the rehearsal found that they can, at the call's times."""
        stopping = replace(self.rehearsed.stopping(call), asleep=self.ends.unseen)
        return self._times.telling(stopping)

    def sources(self, cond: Tensor) -> Tensor:
        calls = [self._conditions[number].stock for number in cond.tolist()]
        images = [source_of(call.arguments["image"]) for call in calls]
        return torch.cat(images).to(self.device)

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        if not self._begins_by_seed:
            return prompts
        return torch.tensor(list(map(self._conditions.number, prompts.tolist(), seeds)))

    def trim(self, particles: int) -> None:
        self._frames.trim(particles)

    def tried(self) -> Cost:
        rows, self.hub.tried = self.hub.tried, Counter()
        # Of parts that one evaluation or decode calls, that with the most rows.
        most: Counter[str] = Counter()
        for (part, instead), n in rows.items():
            decoded = "previews" if instead else "decodes"
            kind = "nfe" if part in self.rehearsed.networks else decoded
            most[kind] = max(most[kind], n)
        return Cost(**{**most, "nfe": math.ceil(most["nfe"] / self.rehearsed.passes)})

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(ONE_BY_ONE.format(part) for part in sorted(self.hub.apart))

    # --- sampling ---------------------------------------------------------------------------------

    @torch.no_grad()
    def init_latents(self, generators: Sequence[Generator]) -> Tensor:
        any_prompt = self._conditions[0]
        return torch.cat([self._first.noise(any_prompt, generator) for generator in generators])

    @torch.no_grad()
    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if not self._begins_by_seed:
            return noise
        found, numbers = self._conditions, cond.tolist()
        return torch.cat(
            [self._first.of(found[number], found.followed(number)) for number in numbers]
        )

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        with graph_of(x):
            return self._predict(x, step, cond)

    def _predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        conditions = list(map(self._conditions.followed, cond.tolist()))
        frames = list(map(self._frames.take, conditions, self._indices(step)))
        converted = self._times.converted
        scaled = self.schedule.scaled(x, step) if converted else x
        given = self._put_in(scaled)
        before = list(map(version_of, given))
        for frame, row in zip(frames, given, strict=True):
            if not isinstance(frame.question, PartCall):  # else it has begun with those of its seed
                frame.go_on(row)
        self.hub.run(frames)
        out = torch.cat([frame.step.out for frame in frames])
        samples = [frame.step.sample for frame in frames]
        kept = [sample is row for sample, row in zip(samples, given, strict=True)]
        changed = not all(kept) or before != list(map(version_of, given))
        seen = torch.cat(samples) if changed and not converted else x
        for condition, frame in zip(conditions, frames, strict=True):
            if torch.is_grad_enabled():
                frame.close()  # which else keeps the graph
            else:
                self._frames.keep(condition, frame)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        x0 = self.schedule.x0(seen, _mean(out, x), step)
        return Prediction(out, x0, seen if changed else None)

    # --- drafts -----------------------------------------------------------------------------------

    def by_drafter(self, net: Any, scale: float | None, *, arrives: bool = False) -> Self:
        key = id(net), scale, arrives
        if key not in self._draft_calls:
            self._draft_calls[key] = net, self._draft_call(net, scale, arrives)
        _, found = self._draft_calls[key]
        twin = self.by(found.net, drafts=None, _stepped=None, _draft=found, _arrives=arrives)
        twin.guidance, twin.passes_per_nfe = InCall(count=found.passes), found.passes
        return twin

    def _draft_call(self, net: Any, scale: float | None, arrives: bool) -> DraftCall:
        guided: dict[str, float] | None = {} if arrives else None
        if scale is not None:
            name = self.given.scale_name(self._typical, embeds=self.embeds)
            if name is None:
                raise ValueError(
                    f"this draft is made at guidance {scale:g}, which no argument of this call says"
                )
            guided = {} if arrives else {name: scale}
        call, alone = self._stopping(self._typical), self.hub.alone
        made = draft_call(self.rehearsed, call, net, guided, alone=alone)
        if arrives:
            check_arrival(self.rehearsed, call, made)
        return made

    def draft_flops(self, twin: Callable[[], Self]) -> float:
        found = twin()._draft
        assert found is not None
        return found.flops / found.passes

    def guided(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        # as a drafter, in whose frames each row is told its timestep
        assert self._draft is not None
        scheduler, rows = self.rehearsed.scheduler, list[DraftRow]()
        for index, timestep, number in zip(
            self._indices(step), t.tolist(), at.tolist(), strict=True
        ):
            told = self._times.told_at(
                scheduler, index, timestep, begin=self.rehearsed.begin, arrives=self._arrives
            )
            rows.append(DraftRow(self._conditions.followed(number), index, told))
        return _mean(self._draft.evaluate(rows, laid_out(x, self.rehearsed.latents)), x)

    # --- images -----------------------------------------------------------------------------------

    def decode(self, x0: Tensor) -> Tensor:
        return self.decode_rows(x0, torch.zeros(len(x0), dtype=torch.long))

    def decode_rows(self, x0: Tensor, cond: Tensor) -> Tensor:
        conditions, last = map(self._conditions.followed, cond.tolist()), self._times.last
        frames = [self._frames.take(condition, last, ends=True) for condition in conditions]
        return self._images(frames, x0)

    def preview(self, x0: Tensor) -> Tensor:
        condition, last = self._conditions.followed(0), self._times.last
        vae = self.pipe.preview_vae
        return self._images(
            [self._frames.begin_for(condition, last, vae=vae) for _ in range(len(x0))], x0
        )

    @torch.no_grad()
    def returned(self, latents: Tensor, cond: Tensor, form: str) -> Any:
        """What the call returns in a form (output_type), of finished latents (1, ...)."""
        condition = self._conditions.followed(int(cond))
        stock = replace(_returning(form, condition.stock), asleep=frozenset())
        (row,) = self._put_in(self._settled(latents.to(stock.device)))
        return self.ends.returned(condition._replace(stock=stock), self._times.last, row)

    def _images(self, frames: Sequence[CallFrame], x0: Tensor) -> Tensor:
        """Images in [0, 1] of finished latents (N, ...), by the ends of frames."""
        with graph_of(x0):
            images = self.ends.images(frames, self._put_in(self._settled(x0)))
        self.image_dtype = images[0].dtype
        wide = torch.promote_types(self.image_dtype, torch.float32)
        return torch.stack(images).to(x0.device, wide)

    def _put_in(self, x: Tensor) -> Sequence[Tensor]:
        """Latents (N, ...) as frames get them: copies where their calls write into them."""
        made = laid_out(x, self.rehearsed.latents)
        own = made.clone() if self.rehearsed.overwrites or made.requires_grad else made
        return [own[i : i + 1] for i in range(len(own))]

    def _settled(self, latents: Tensor) -> Tensor:
        """Latents in the dtype in which steps leave them."""
        return latents.to(self._stepped or self.rehearsed.latents.dtype)

    # --- gradients --------------------------------------------------------------------------------

    def differentiable(self, through: str) -> Sequence[Tensor]:
        name = self.pipe.stock_class().__name__
        if not self._puts_in:
            raise ValueError(
                f"gradients are not taken through {name}: no latents can be put into this call, or "
                "its steps depend on those before; search by an algorithm without gradients"
            )
        call = self._stopping(_returning(self.given.arguments["output_type"], self._typical))
        parts = set[str]()
        for index in [self._times.last, *[0] * (through == "denoiser")]:
            with closing(self._frames.begin(call, seeded(0), index)) as frame:
                parts |= follow(frame, self.rehearsed.latents)
        return self._weights(sorted(parts))

    # --- what it costs ----------------------------------------------------------------------------

    def costs(self) -> Costs:
        preview = self._preview_flops() if Capability.PREVIEW in self.can else 0.0
        draft = 0.0 if self.drafts is None else self.drafts.flops()
        return Costs(self.rehearsed.nfe_flops, self._decode_flops, preview, draft)

    def _preview_flops(self) -> float:
        """FLOPs of the end of a call whose decoder is the preview VAE.

        ValueError for one that it cannot use.
        """
        call, vae = self._stopping(self._typical), self.pipe.preview_vae
        try:
            end = self.ends.seen(call, self._times.last, vae=vae)
        except AttributeError as error:  # of the preview VAE, which the end of the call reads
            raise ValueError(
                f"the stock call of {self.pipe.stock_class().__name__} cannot decode by "
                f"preview_vae: {error}; set pipe.preview_vae to None"
            ) from error
        return end.all_flops(self.ends.unseen)

    def memo(self, decoder: str = "decode") -> MutableMapping[Any, Any]:
        memo: flops.Memo = self.pipe._search_memo
        networks = [weakref.ref(getattr(self.pipe, name)) for name in self.rehearsed.networks]
        layout = tuple(vars(self.layout).items())
        return memo.of((*networks, decoder, self.text_length, layout))


def graph_of(x: Tensor) -> AbstractContextManager[Any]:
    """Lets what is computed of x have a graph where x is followed by gradients, and none else."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad)


def _returning(form: str, call: StockCall) -> StockCall:
    return replace(call, arguments={**call.arguments, "output_type": form})


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x (N, ...) in the memory layout of `like` (1, ...).

    The last digits of a matrix product depend on it.
    """
    strides = like.stride()
    axes = [0, *sorted(range(1, x.ndim), key=lambda axis: -strides[axis])]
    if axes == sorted(axes):
        return x
    return x.permute(axes).contiguous().permute([axes.index(axis) for axis in range(x.ndim)])


def _mean(out: Tensor, x: Tensor) -> Tensor:
    """A network's output without a variance, which some predict, too."""
    return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def _sizes(shapes: Sequence[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)
