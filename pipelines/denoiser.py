"""Any pipeline's stock call as a Denoiser: frames for the rows of a batch, wherever they stand.

Latents are put into frames, which call the network together and step apart. What is to be known of
the pipeline, a rehearsal finds.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary, proxy

import torch
from torch import Generator, Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.memory import lacks_memory
from ttsnap.core.prompt import Prompt
from ttsnap.options.variety import Repel
from ttsnap.pipelines.calls.coupling import CoupledHub
from ttsnap.pipelines.calls.drafts import DraftCall, DraftRow, check_arrival, draft_call
from ttsnap.pipelines.calls.gradients import follow
from ttsnap.pipelines.calls.hub import ONE_BY_ONE, Hub
from ttsnap.pipelines.calls.latents import Ends, FirstLatents
from ttsnap.pipelines.calls.opening import ALIKE, check_lists, open_call
from ttsnap.pipelines.calls.pictures import alike, images_of, main_of, sound_of, source_of
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.rows import (
    Evaluation,
    Placed,
    graph_of,
    in_order,
    laid_out,
    mean_of,
    taken,
)
from ttsnap.pipelines.calls.runs import first_shapes
from ttsnap.pipelines.calls.schedules import FrameTimes, schedule_of
from ttsnap.pipelines.calls.stock_call import Condition, Conditions, GivenCall, StockCall, Widening
from ttsnap.pipelines.calls.stops import NOWHERE, PartCall
from ttsnap.pipelines.calls.values import PLAIN, leaves, version_of
from ttsnap.pipelines.calls.widening import widening_of
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory.memo import Memo
from ttsnap.pipelines.output import converted
from ttsnap.pipelines.patches import refuse_patches
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Costs, Denoiser
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

Found = TypeVar("Found")
EMBEDS = "guidance_embeds"
"""The setting of networks with distilled guidance, which read its scale."""


class PipelineDenoiser(Denoiser):
    """One stock call of a pipeline, whose frames stand at the steps of rows."""

    network: str
    """The name of the part that denoises."""
    height: int
    width: int
    """Of its images, in pixels."""
    scale: float
    """The guidance scale of the call: that of its two passes, or the one that the network reads."""
    returns_more = False
    """Whether what comes back is more than the pictures that a search sees: sound, another range."""
    schedule: Schedule
    given: GivenCall
    rehearsed: Rehearsal
    hub: Hub
    ends: Ends
    image_dtype: torch.dtype = torch.float32
    """The dtype in which the VAE decoded the last images, before `decode` widened them."""
    _stepped: torch.dtype | None = None
    """The dtype in which the scheduler's steps leave latents; None before any prediction."""
    _times: FrameTimes
    """Of the whole call, of which `schedule` is the end where particles begin later."""
    _widening: Widening | None = None
    """How a frame makes several images, if it can."""
    _members: WeakValueDictionary[int, PipelineDenoiser]
    """Those of calls whose rows it evaluates, too, by where their positions begin."""
    _end = 0
    """Where those of the next one would."""
    _draft: DraftCall | None = None
    """Of a copy that evaluates as a drafter does."""
    _arrives = False
    """Whether it is told to arrive at the end."""

    def __init__(self, pipe: Any, **call: Any) -> None:
        """Rehearse a call with these arguments. ValueError for one that no search can suspend."""
        vars(pipe).setdefault("_search_memo", Memo())
        # this call's scheduler and settings must not show in the user's
        self.pipe: Any = copy.copy(pipe)
        refuse_patches({f"pipe.{name}": part for name, part in pipe.components.items()})
        self.device = self.pipe._execution_device  # read once: it walks through all modules
        self._prompts = list[Prompt]()
        self._calls = list[StockCall]()
        self._members = WeakValueDictionary[int, PipelineDenoiser]()
        self._draft_calls = dict[tuple[int, float | None, bool], tuple[Any, DraftCall]]()
        self.given, self._typical, self.rehearsed, hooks = open_call(self.pipe, call)
        found = self.rehearsed
        self.height, self.width = found.image[-2:]
        self.frames = found.image[0] if len(found.image) > 3 else None
        self.network = found.networks[0]
        joins: dict[Hashable, bool] = {}
        if not (found.held or hooks):
            joins = self._once("joins", lambda: joins)
        self.hub = Hub(found.networks, found.held, alone=hooks, joins=joins)
        self._frames = FramePool(self.hub, remembers=found.remembers)
        self._first = FirstLatents(self._frames, found)
        self.ends = Ends(self._frames, found)
        self.scale = self.given.scale(self._typical, embeds=self._embeds)
        self.passes_per_nfe = found.passes
        stay = getattr(self.pipe, "_exclude_from_cpu_offload", ())
        # enable_model_cpu_offload
        self.offloaded = bool(getattr(self.pipe, "_all_hooks", ())) and "vae" not in stay
        self.gradient_checkpointing = bool(getattr(self.net, "is_gradient_checkpointing", False))
        schedule = schedule_of(found)
        self._times = FrameTimes(schedule)
        self._follow(schedule)
        if found.draws_last and getattr(self.kernel, "stochastic", False):
            raise ValueError(
                f"search cannot use {type(self.schedule.scheduler).__name__} here: the call draws "
                "noise after its last step, too, from the generator of its steps; set "
                "pipe.scheduler to one that draws none"
            )
        self.ends.unseen, self._decode_flops, are_pictures = self._once("end", self._know_end)
        if not are_pictures:
            self.given = self.given.returning("np")  # as in Kandinsky
        if not (found.by_seed or found.remembers or hooks) and found.fields.plain:
            typical = self._stopping(self._typical)
            self._widening = self._once("widening", lambda: widening_of(typical))

    def _once(self, what: Hashable, find: Callable[[], Found]) -> Found:
        """What was found of a call like this one, or is found now."""
        known = self.rehearsed.known
        if what not in known:
            known[what] = find()
        found: Found = known[what]
        return found

    def _know_end(self) -> tuple[frozenset[str], float, bool]:
        """The parts that pictures do without, FLOPs of a decode, and whether tensors that the call
        returns are pictures in [0, 1]."""
        plain = self.ends.know(self._stopping(self._typical), self._times.last)
        tensors = self.given.arguments["output_type"] == "pt"
        are_pictures = not tensors or self._are_pictures(plain.made)
        return self.ends.unseen, plain.all_flops(self.ends.unseen), are_pictures

    def _are_pictures(self, tensors: Any) -> bool:
        """Whether tensors that the call returned show what its arrays do, in [0, 1]."""
        arrays = self._dummy_of("np")
        pairs = zip(images_of(tensors), images_of(arrays), strict=True)  # small, as allclose copies
        return all(torch.allclose(one.float().cpu(), other, atol=1e-2) for one, other in pairs)

    def must_return(self, form: str) -> None:
        self.returns_more = self._once(("returns", form), lambda: self._returns_more(form))

    def _returns_more(self, form: str) -> bool:
        made = self._dummy_of(form)
        seen = [images_of(self._dummy_of(self.given.arguments["output_type"]))]
        own = converted(seen, form, torch.float32, self.device)
        return sound_of(made) is not None or not alike(main_of(made), own)

    def _dummy_of(self, form: str) -> Any:
        """What the call returns in a form, with dummies."""
        call = self._stopping(_returning(form, self._typical))
        return self.ends.seen(call, self._times.last).made

    # --- what it can do ---------------------------------------------------------------------------

    @property
    def wide(self) -> bool:
        """Whether a stock call may make several images of a prompt, each as one of its own does."""
        return self._widening is not None

    @property
    def _puts_in(self) -> bool:
        """Whether latents can be put in at any step, for any particle."""
        return self.rehearsed.places != NOWHERE and not self.rehearsed.remembers

    @property
    def _couples(self) -> bool:
        """Whether seeds can be denoised as a group, whose calls are one."""
        return self._puts_in and not (self._begins_by_seed or self.hub.alone)

    @property
    def _shares(self) -> bool:
        """Whether rows of other calls can join its own: pictures of a call are not compared."""
        plain = all(isinstance(leaf, PLAIN) for leaf in leaves(self.given.arguments))
        return plain and self._couples and not self.hub.held

    @property
    def _begins_later(self) -> bool:
        """Whether the call begins later than its scheduler, with a picture under noise."""
        return self.rehearsed.begin > 0

    @property
    def _begins_by_seed(self) -> bool:
        """Whether first latents are of a prompt and a seed, in place of noise for any prompt."""
        return self.rehearsed.by_seed or self.given.redraws

    def _abilities(self) -> set[Capability]:
        """What this call can do."""
        found = {Capability.DIFFERENTIATE}
        if self._puts_in and self.schedule.path is not None and self.schedule.times is not None:
            found.add(Capability.PATH)
        if self._puts_in and self._times.known_path:
            found.add(Capability.DRAFT)
        if self._couples:
            found.add(Capability.COUPLE)
        if self._shares:
            found.add(Capability.SHARE)
        # the VAE, which a preview takes the place of
        if getattr(self.pipe, "preview_vae", None) is not None and "vae" in self.pipe.components:
            found.add(Capability.PREVIEW)
        if self.given.edits:
            found.add(Capability.EDIT)
        return found

    def must(self, can: Capability) -> None:
        """ValueError where this call cannot do this."""
        if can is Capability.SHARE and not self._shares:
            raise ValueError(
                "rows of other calls cannot join this one, which is given pictures, changes its "
                "networks, or keeps more of a seed or of steps than latents; let it have a network "
                "of its own"
            )
        if can is Capability.COUPLE and not self._couples:
            raise ValueError(
                "the rows of a group cannot be one call here: latents are not all that this call "
                "keeps of a seed, or its steps depend on those before; leave variety out"
            )
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

    def _follow(self, schedule: Schedule) -> None:
        """Step at the times of this schedule."""
        self._times = replace(self._times, whole=schedule)
        self._set(schedule)

    def _set(self, schedule: Schedule) -> None:
        self.schedule = schedule
        # prepare_latents scales by its init_noise_sigma
        vars(self.pipe)["scheduler"] = schedule.scheduler
        self.grid = schedule.grid
        self.kernel = schedule.kernel
        if schedule.path is not None and schedule.times is not None:
            self.path = schedule.path
            self.times = schedule.times
        self.can = frozenset(self._abilities())
        self.mixes_noise = not self._begins_by_seed
        self.forget_prompts()

    def convert(
        self,
        path: str | Interpolant | None = None,
        times: str | Tensor = "pipeline",
    ) -> None:
        """Sample along another path, at other times (pipelines/latents/convert.py), with one
        evaluation a step."""
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
        self._times = replace(self._times, converted=converted)
        self._follow(convert(self.schedule, path, times))

    def begin_later(self, step: int) -> None:
        """Let the grid begin at this step of what it is, to which a `starter` brings particles."""
        if self._begins_later:
            raise ValueError(
                "particles of this call begin with a picture under noise, not with noise; set "
                "finish to noise, so that drafts only rank"
            )
        self._set(self.schedule.beginning_at(step))

    def _indices(self, step: Tensor) -> list[int]:
        """The indices of frames at positions (N,) of `schedule`."""
        before = self._times.before(self.schedule)
        found: list[int] = (step + before).tolist()
        return found

    @property
    def net(self) -> Any:
        """The network that denoises."""
        return getattr(self.pipe, self.network)

    @property
    def _embeds(self) -> bool:
        """Whether the network reads a guidance scale."""
        return bool(getattr(self.net, "config", {}).get(EMBEDS))

    # --- prompts ----------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        self._take([Prompt.of(prompt) for prompt in prompts], self._encoded)
        here = dict(zip(map(id, self._prompts), self._calls, strict=True))
        for member in list(self._members.values()):
            member._take(self._prompts, partial(member._beside, here))

    def _take(self, prompts: list[Prompt], make: Callable[[Prompt], StockCall]) -> None:
        """Have the calls of these prompts and no others. make: those of new ones."""
        # By identity, since prompts may hold pictures, which are slow to compare.
        known = dict(zip(map(id, self._prompts), self._calls, strict=True))
        self._calls = [known.get(id(prompt)) or make(prompt) for prompt in prompts]
        self._prompts = prompts
        self._conditions = Conditions(self._calls, by_seed=self.rehearsed.by_seed)
        self._frames.forget_others(self._calls)

    def _beside(self, here: Mapping[int, StockCall], prompt: Prompt) -> StockCall:
        """The call of a prompt, with what encoders made for one of the same prompt."""
        other = here[id(prompt)]
        call = self._stopping(self.given.for_prompt(prompt))
        return replace(call, kept=other.kept, encodings=other.encodings, beside=other)

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
        stopping = self.rehearsed.stopping(call)
        stopping = replace(stopping, asleep=self.ends.unseen, widening=self._widening)
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
        rows = Counter(self.hub.tried)
        self.hub.tried.clear()
        # Of parts that one evaluation or decode calls, that with the most rows.
        most: Counter[str] = Counter()
        for (part, instead), n in rows.items():
            decoded = "previews" if instead else "decodes"
            kind = "nfe" if part in self.rehearsed.networks else decoded
            most[kind] = max(most[kind], n)
        drafted = 0
        for _, draft in self._draft_calls.values():
            drafted += draft.frames.hub.tried[draft.network, True]
            draft.frames.hub.tried.clear()
        nfe = math.ceil(most["nfe"] / self.rehearsed.passes)
        return Cost(**{**most, "nfe": nfe, "draft_calls": drafted})

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(ONE_BY_ONE.format(part) for part in sorted(self.hub.apart))

    # --- sampling ---------------------------------------------------------------------------------

    @torch.no_grad()
    def init_latents(self, generators: Sequence[Generator]) -> Tensor:
        return self._first.noise(self._conditions[0], generators)

    @torch.no_grad()
    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        if not self._begins_by_seed:
            return noise
        numbers = cond.tolist()
        followed = list(map(self._conditions.followed, numbers))
        return self._first.of([self._conditions[number] for number in numbers], followed)

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        with graph_of(x):
            if self._members:
                return self._predict_for_all(x, step, cond)
            begun = self._start(x, step, cond)
            self.hub.run([each.frame for each in begun.placed])
            return self._finish(begun)

    def _predict_for_all(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        """The same of rows of several calls, whose frames call the network together."""
        starts = torch.tensor([0, *sorted(self._members)])
        of = torch.bucketize(step, starts, right=True) - 1
        begun = list[tuple[PipelineDenoiser, Evaluation]]()
        order = list[int]()
        for i in of.unique().tolist():
            one = self._members.get(int(starts[i]), self)
            rows = (of == i).nonzero()[:, 0]
            order += rows.tolist()
            own = taken(x, rows.tolist(), len(rows))
            begun.append((one, one._start(own, step[rows] - starts[i], cond[rows])))
        self.hub.run([each.frame for _, one in begun for each in one.placed])
        made = [one._finish(own) for one, own in begun]
        self._stepped = begun[0][0]._stepped
        if len(made) == 1:
            return made[0]
        back = torch.tensor(order).argsort().to(x.device, non_blocking=True)
        out, x0 = (
            torch.cat(parts)[back] for parts in ([m.out for m in made], [m.x0 for m in made])
        )
        seen = None
        if any(each.x is not None for each in made):
            pairs = zip(made, begun, strict=True)
            seen = torch.cat([own.x if m.x is None else m.x for m, (_, own) in pairs])[back]
        return Prediction(out, x0, seen)

    def _start(self, x: Tensor, step: Tensor, cond: Tensor) -> Evaluation:
        """Put rows into frames, which then wait for the network."""
        conditions = list(map(self._conditions.followed, cond.tolist()))
        placed = self._placed(conditions, self._indices(step))
        scaled = self.schedule.scaled(x, step) if self._times.converted else x
        given = self._put_in(placed, scaled)
        before = list(map(version_of, given))
        for (frame, _), latents in zip(placed, given, strict=True):
            if not isinstance(frame.question, PartCall):  # else it has begun with those of its seed
                frame.go_on(latents)
        return Evaluation(x, step, conditions, placed, given, before)

    def _finish(self, begun: Evaluation) -> Prediction:
        """The evaluation of rows whose frames wait at their step."""
        x, step, conditions, placed, given, before = begun
        out = in_order(placed, [each.frame.step.out for each in placed])
        samples = [each.frame.step.sample for each in placed]
        kept = [sample is latents for sample, latents in zip(samples, given, strict=True)]
        changed = not all(kept) or before != list(map(version_of, given))
        seen = in_order(placed, samples) if changed and not self._times.converted else x
        if seen is samples[0]:
            seen = seen.clone()  # into which the call writes, while this row may wait
        for frame, rows in placed:
            if torch.is_grad_enabled():
                frame.close()  # which else keeps the graph
            else:
                self._frames.keep(conditions[rows[0]], frame)
        self._stepped = self.schedule.stepped(x.dtype, out.dtype)
        x0 = self.schedule.x0(seen, mean_of(out, x), step)
        return Prediction(out, x0, seen if changed else None)

    def merge_schedule(self, other: Self) -> int:
        self.must(Capability.SHARE)
        other.must(Capability.SHARE)
        if self._kind != other._kind:
            raise ValueError(
                "calls share a network where they differ in the number of their steps alone; let "
                "this one have a network of its own"
            )
        other.hub = other._frames.hub = self.hub
        start = self._end or len(self.schedule.timesteps)
        self._end = start + len(other.schedule.timesteps)
        self._members[start] = other
        return start

    @property
    def _kind(self) -> Any:
        """In what calls agree whose rows join: they may differ in the number of their steps."""
        found = self.rehearsed
        return found.known.get(ALIKE, id(self)), found.networks, found.places

    def _placed(
        self,
        conditions: Sequence[Condition],
        indices: Sequence[int],
        *,
        ends: bool = False,
    ) -> list[Placed]:
        """Rows, of conditions and at indices, in frames. ends: whether frames end with them."""
        together: dict[Any, list[int]] = {}
        for row, (condition, index) in enumerate(zip(conditions, indices, strict=True)):
            together.setdefault(condition.key(index), []).append(row)
        placed = list[Placed]()
        for rows in together.values():
            first = rows[0]
            for frame in self._frames.take(conditions[first], indices[first], len(rows), ends=ends):
                placed.append(Placed(frame, rows[: frame.images]))
                rows = rows[frame.images :]
        return placed

    # --- coupled seeds ----------------------------------------------------------------------------

    def coupled(
        self, how: Repel, calls: int
    ) -> tuple[Callable[..., Prediction], Callable[[], float]]:
        """`predict` of a group of seeds that are coupled, in the first evaluations of this call, and
        the FLOPs of it beside an evaluation of each seed (sampling.starts.Coupled)."""
        # other searches call the networks themselves meanwhile, which copies are not
        own = {name: getattr(self.pipe, name) for name in self.rehearsed.networks}
        nets = {name: shared_copy(net) for name, net in own.items() if type(net) is type(self.net)}
        hub = CoupledHub(own, nets, how, self.rehearsed.latents, self.hub.tried)
        pool = FramePool(hub, remembers=False, parts=nets)
        whole = self.schedule
        here = proxy(self)

        def predict(x: Tensor, step: Tensor, cond: Tensor, key: rng.Key | None) -> Prediction:
            twin = here.by(here.net, schedule=whole)
            if key is not None:
                vars(twin).update(_frames=pool, hub=hub)
                hub.key = key
            prediction: Prediction = twin.predict(x, step, cond)
            if key is not None and int(step[0]) + 1 == calls:
                pool.trim(0)
            return prediction

        if self._coupled_flops(hub) == 0:
            raise ValueError(
                f"variety couples seeds in attention, of which {type(self.net).__name__} has none; "
                "leave variety out"
            )
        return predict, lambda: here._coupled_flops(hub)

    def _coupled_flops(self, hub: CoupledHub) -> float:
        """FLOPs of coupling a seed with the others of a group, beside its evaluation."""
        memo = self.memo()
        kind = ("coupled", hub.how.size)
        if kind not in memo:
            call = self._stopping(self._typical)
            with closing(self._frames.begin(call, [seeded(0)])) as frame:
                frame.go_on(self.rehearsed.latents)
                memo[kind] = hub.flops(frame)
        found: float = memo[kind]
        return found

    # --- drafts -----------------------------------------------------------------------------------

    def by(self, net: Any, **more: Any) -> Self:
        """A copy, with the encoded prompts, whose network is another. more: other attributes of
        it."""
        twin = copy.copy(self)
        vars(twin).update(pipe=copy.copy(self.pipe), **more)
        vars(twin.pipe)[self.network] = net
        return twin

    def by_drafter(self, net: Any, scale: float | None, *, arrives: bool = False) -> Self:
        """A copy, as of `by`, which evaluates as drafters do: by this network, guided at this
        scale.

        None: without guidance, or at the call's scale where the network reads one. arrives: whether
        the network, a flow map, is told to arrive at the end, guided as the call is. ValueError for
        guidance that no argument of the call says, and for no flow map.
        """
        key = id(net), scale, arrives
        if key not in self._draft_calls:
            self._draft_calls[key] = net, self._draft_call(net, scale, arrives)
        _, found = self._draft_calls[key]
        twin = self.by(found.net, drafts=None, _stepped=None, _draft=found, _arrives=arrives)
        twin.passes_per_nfe = found.passes
        return twin

    def _draft_call(self, net: Any, scale: float | None, arrives: bool) -> DraftCall:
        guided: dict[str, float] | None = {} if arrives else None
        if scale is not None:
            name = self.given.scale_name(self._typical, embeds=self._embeds)
            if name is None:
                raise ValueError(
                    f"this draft is made at guidance {scale:g}, which no argument of this call says"
                )
            guided = {} if arrives else {name: scale}
        call = self._stopping(self._typical)
        alone = self.hub.alone
        made = draft_call(self.rehearsed, call, net, guided, alone=alone)
        if arrives:
            check_arrival(self.rehearsed, call, made)
        return made

    def draft_flops(self) -> float:
        """FLOPs of one forward pass, of a copy that evaluates as a drafter does."""
        assert self._draft is not None
        return self._draft.flops / self._draft.passes

    def drafted(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The guided output (N, ...) of a copy that evaluates as a drafter does.

        x (N, ...), scaled for the network, and t (N,), the timesteps that rows are told, are on the
        device. step (N,), positions in the schedule, and at (N,), conditions, are on the CPU.
        """
        assert self._draft is not None
        scheduler = self.rehearsed.scheduler
        rows = list[DraftRow]()
        for index, timestep, number in zip(
            self._indices(step), t.tolist(), at.tolist(), strict=True
        ):
            told = self._times.told_at(
                scheduler, index, timestep, begin=self.rehearsed.begin, arrives=self._arrives
            )
            rows.append(DraftRow(self._conditions.followed(number), index, timestep, told))
        return mean_of(self._draft.evaluate(rows, laid_out(x, self.rehearsed.latents)), x)

    # --- images -----------------------------------------------------------------------------------

    def decode(self, x0: Tensor) -> Tensor:
        return self.decode_rows(x0, torch.zeros(len(x0), dtype=torch.long))

    def decode_rows(self, x0: Tensor, cond: Tensor) -> Tensor:
        conditions = list(map(self._conditions.followed, cond.tolist()))
        indices = [self._times.last] * len(conditions)
        return self._images(self._placed(conditions, indices, ends=True), x0)

    def preview(self, x0: Tensor) -> Tensor:
        condition = self._conditions.followed(0)
        last = self._times.last
        placed = list[Placed]()
        rows = range(len(x0))
        while rows:
            vae = self.pipe.preview_vae
            frame = self._frames.begin_for(condition, last, len(rows), vae=vae)
            placed.append(Placed(frame, rows[: frame.width]))
            rows = rows[frame.width :]
        return self._images(placed, x0)

    @torch.no_grad()
    def returned(self, latents: Tensor, cond: Tensor, form: str) -> Any:
        """What the call returns in a form (output_type), of finished latents (1, ...)."""
        condition = self._conditions.followed(int(cond))
        stock = replace(_returning(form, condition.stock), asleep=frozenset())
        own = laid_out(self.settled(latents.to(stock.device)), self.rehearsed.latents).clone()
        return self.ends.returned(condition._replace(stock=stock), self._times.last, own)

    def _images(self, placed: Sequence[Placed], x0: Tensor) -> Tensor:
        """Images in [0, 1] of finished latents (N, ...), by the ends of frames."""
        with graph_of(x0):
            given = self._put_in(placed, self.settled(x0))
            made = self.ends.images([each.frame for each in placed], given)
        rows = [row for each in placed for row in each.rows]
        images = [image for _, image in sorted(zip(rows, made, strict=True), key=itemgetter(0))]
        self.image_dtype = images[0].dtype
        wide = torch.promote_types(self.image_dtype, torch.float32)
        return torch.stack(images).to(x0.device, wide)

    def _put_in(self, placed: Sequence[Placed], x: Tensor) -> Sequence[Tensor]:
        """Latents (N, ...) as frames get them: copies where their calls write into them."""
        found = list[Tensor]()
        for frame, rows in placed:
            own = laid_out(taken(x, rows, frame.width), self.rehearsed.latents)
            if frame.index and self._stepped is not None and not self._times.converted:
                own = own.to(self._stepped)  # a batch with noise is wider than what was stepped
            copies = self.rehearsed.overwrites or own.requires_grad
            found.append(own.clone() if copies else own)
        return found

    def settled(self, latents: Tensor) -> Tensor:
        """Latents in the dtype in which steps leave them: finished ones are wider where they share
        a batch with estimates."""
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
            with closing(self._frames.begin(call, [seeded(0)], index)) as frame:
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
        call = self._stopping(self._typical)
        vae = self.pipe.preview_vae
        try:
            end = self.ends.seen(call, self._times.last, vae=vae)
        # of what the end of the call reads of a preview VAE, or of latents that this does not take
        except (AttributeError, RuntimeError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(
                f"the stock call of {self.pipe.stock_class().__name__} cannot decode by "
                f"preview_vae: {error}; set pipe.preview_vae to None"
            ) from error
        return end.all_flops(self.ends.unseen)

    def memo(self, decoder: str = "decode") -> MutableMapping[Hashable, Any]:
        memo: Memo = self.pipe._search_memo
        found = self.rehearsed
        networks = [weakref.ref(getattr(self.pipe, name)) for name in found.networks]
        size = tuple(found.latents.shape), found.image, found.passes, found.nfe_flops
        return memo.of((*networks, decoder, *size))

    def _weights(self, names: Sequence[str]) -> list[Tensor]:
        """The weights of all networks. ValueError where gradients cannot go through one of these
        parts."""
        for name in names:
            quantizer = getattr(getattr(self.pipe, name), "hf_quantizer", None)
            if quantizer is not None and not quantizer.is_trainable:
                raise ValueError(
                    f"{name} is quantised by {type(quantizer).__name__}, which carries no"
                    " gradients; load it in bfloat16, or guide through x0 alone"
                )
        networks = [
            part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)
        ]
        return [parameter for network in networks for parameter in network.parameters()]


def _returning(form: str, call: StockCall) -> StockCall:
    return replace(call, arguments={**call.arguments, "output_type": form})


def _sizes(shapes: Sequence[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)
