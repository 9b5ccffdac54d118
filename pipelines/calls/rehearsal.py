"""What a stock call does, found by running it without its networks.

No table says of a pipeline where its first latents come from, which of its parts denoise, how many
steps it takes and at which timesteps, and what else it draws. Runs whose networks answer with
dummies (run.py) show all of it, and what a search cannot follow.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.parts import (
    Processor,
    changed,
    denoisers_of,
    drops_values,
    dtypes,
    main_first,
    pipelines_in,
    processors,
)
from ttsnap.pipelines.calls.runs import CallRun, Setting, dependence, reads_late, run_of
from ttsnap.pipelines.calls.stepping import remembering, stock_scheduler
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.stops import NOWHERE, LatentsPlace
from ttsnap.pipelines.calls.values import Fields, version_of
from ttsnap.pipelines.patches import refuse_patches


@dataclass(frozen=True)
class Rehearsal:
    """What a stock call does."""

    places: tuple[LatentsPlace, ...]
    """Where the first latents of each field come from; NOWHERE where any cannot be put in."""
    fields: Fields
    networks: tuple[str, ...]
    """The parts that are called in its steps, the main one first."""
    scheduler: Any
    """With the timesteps of the call, no step taken."""
    others: tuple[Any, ...]
    """The schedulers of further fields."""
    times: Tensor
    """(P,) the timesteps of its rounds, on the CPU."""
    begin: int
    """The scheduler's position at the first of them: a later one where a picture is redrawn."""
    step_arguments: Mapping[str, Any]
    """Further arguments of the scheduler's step, without the generator."""
    passes: int
    """Rows that a step asks of the network which is asked most, at most."""
    latents: Tensor
    """(1, ...) of the first step, of the seed 0."""
    by_seed: bool
    """Whether more than the latents of the first step differs from seed to seed."""
    remembers: bool
    """Whether what a step asks depends on more of the steps before than on the latents."""
    draws_last: bool
    """Whether the call draws noise after its last step, as where its decoder does."""
    overwrites: bool
    """Whether it writes into latents that it has stepped, so that it is given copies."""
    writes_steps: bool
    """Whether it writes what steps make of them, which schedulers with a history then keep."""
    nfe_flops: float
    """Of an evaluation, as the dearest step makes it."""
    image: tuple[int, ...]
    """(3, H, W) of the image that it returned, or (T, 3, H, W) of the video."""
    sounds: bool
    """Whether it returned sound with it."""
    dummies: Dummies
    """What its networks answered."""
    hooked: frozenset[str]
    """The parts in which the call puts hooks."""
    held: Mapping[str, list[Processor]]
    """Attention processors that the call has put into its networks, by part."""
    casts: bool
    """Whether it changes the dtype of a part to decode."""
    known: dict[Hashable, Any]
    """What was found of calls that differ in the number of their steps alone."""

    def stopping(self, call: StockCall) -> StockCall:
        """A call whose frames stop where this found that they can."""
        return replace(
            call,
            places=self.places,
            fields=self.fields,
            networks=frozenset(self.networks),
            dummies=self.dummies,
            hooked=self.hooked,
        )


class Structure(NamedTuple):
    """What does not depend on the number of steps, of which the runs are many."""

    by_seed: bool
    remembers: bool
    late: bool
    draws_last: bool


def rehearse(stock: StockCall, known: dict[Hashable, Any] | None = None) -> Rehearsal:
    """Run a call without its networks, some times; once where calls like it are known.

    ValueError, in one sentence, for a call that a search cannot suspend.
    """
    name = type(stock.pipe).stock_class().__name__
    known = {} if known is None else known
    _check_training(stock)
    candidates = denoisers_of(stock.modules)
    unchanged = processors(stock.modules)
    widths = dtypes(stock.modules)
    whole = _run_by_seed(stock, candidates, name)
    refuse_patches(stock.modules)  # such as the call has made
    _check_loop(whole, stock, name)
    count = len(whole.firsts)
    networks = _networks(whole, candidates, stock.modules, name)
    _check_rounds(whole, networks, name)
    step_arguments = _step_arguments(whole, name)

    places = tuple(place for place in whole.places if place is not None)
    if len(places) < count:
        places = NOWHERE
    if "structure" not in known:
        known["structure"] = _structure(replace(stock, places=places), whole, networks, name)
    found: Structure = known["structure"]
    fields = Fields(whole.shapes, found.late)
    schedulers = [remembering(stock_scheduler(step.scheduler)) for step in whole.firsts]
    times = torch.tensor(whole.times[::count], dtype=torch.float64)
    return Rehearsal(
        places=places,
        fields=fields,
        networks=main_first(networks),
        scheduler=schedulers[0],
        others=tuple(schedulers[1:]),
        times=times,
        begin=_begin(schedulers[0], times, name),
        step_arguments=step_arguments,
        passes=whole.passes(networks),
        latents=fields.joined([step.sample for step in whole.firsts]),
        by_seed=found.by_seed,
        remembers=found.remembers,
        draws_last=found.draws_last,
        overwrites=any(version_of(latents) != then for latents, then in whole.stepped),
        writes_steps=whole.writes_steps,
        nfe_flops=max(whole.flops.values()),
        image=whole.image,
        sounds=whole.sounds,
        dummies=stock.dummies,
        hooked=frozenset(whole.hooked),
        held=changed(unchanged, whole.processors),
        casts=bool(whole.dtypes) and whole.dtypes != widths,
        known=known,
    )


def _structure(
    stock: StockCall,
    whole: CallRun,
    networks: Collection[str],
    name: str,
) -> Structure:
    """Find it by further runs. whole: the first one. ValueError where steps of several schedulers
    remember."""
    count = len(whole.firsts)
    by_seed, remembers = dependence(stock, networks, count)
    if whole.filling & set(networks):  # a frame led without its networks has an empty cache
        by_seed = remembers = True
    late = False
    if count > 1:
        late = reads_late(replace(stock, places=NOWHERE), networks, Fields(whole.shapes))
    last = len(whole.times)
    asleep = denoisers_of(stock.modules)
    other = run_of(replace(stock, places=None), Setting(asleep=asleep, seed=1))
    draws_last = whole.draws or other.marks_from(last) != whole.marks_from(last)
    if remembers and count > 1:
        raise ValueError(
            f"search cannot use {name} yet: a step of its {count} schedulers depends on more of "
            "those before than on the latents"
        )
    return Structure(by_seed or draws_last, remembers, late, draws_last)


# --- refusals -------------------------------------------------------------------------------------


def _check_training(stock: StockCall) -> None:
    training = [name for name, part in stock.modules.items() if drops_values(part)]
    if training:
        raise ValueError(
            f"{' and '.join(training)} of this pipeline drops values at random, being in training "
            f"mode, so that no image can be repeated; call pipe.{training[0]}.eval()"
        )


def _run_by_seed(stock: StockCall, asleep: Collection[str], name: str) -> CallRun:
    """The whole call. ValueError where it fails, and where it draws what no seed makes again."""
    before = torch.default_generator.get_state()
    try:
        whole = run_of(stock, Setting(asleep))
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"search cannot use this call of {name}, whose code fails by {type(error).__name__}: "
            f"{error}; where it works without search=, it reads more of its networks than results"
        ) from error
    if not torch.equal(before, torch.default_generator.get_state()):
        raise ValueError(
            f"search cannot use this call of {name}: it draws noise from torch's global generator, "
            "which no seed makes again, as where it samples what its VAE encodes without "
            "`generator`; search with a subclass that passes it on"
        )
    return whole


def _check_loop(run: CallRun, stock: StockCall, name: str) -> None:
    """ValueError where no loop steps schedulers in turn."""
    if not run.firsts:
        if inner := pipelines_in(stock.pipe):
            raise ValueError(
                f"search cannot use {name}: its call runs other pipelines; search with the last "
                f"one, pipe.{inner[-1]}, and give it what pipe.{inner[0]} makes"
            )
        raise ValueError(
            f"search cannot use this call of {name}: it steps no scheduler, so that there is nothing "
            "to search; where it has a strength of 0, give more"
        )
    stepped = list(map(id, run.schedulers))
    count = len(run.firsts)
    if stepped != stepped[:count] * (len(stepped) // count):
        raise ValueError(
            f"search cannot use {name} yet: its call steps {count} schedulers, not in turn, and "
            "candidates are followed by one loop"
        )


def _networks(
    run: CallRun,
    candidates: Collection[str],
    modules: Mapping[str, nn.Module],
    name: str,
) -> set[str]:
    """The parts that are called in the steps after the first.

    Where there is one step, those before it. Of two experts, the first may be called in the first
    step alone.
    """
    last = len(run.times)
    calls = [call for call in run.calls if call.part in candidates]
    found = {call.part for call in calls}
    if last > 1:
        kinds = {type(modules[call.part]) for call in calls if 0 < call.at < last}
        found = {part for part in found if type(modules[part]) in kinds}
    if not found:
        raise ValueError(
            f"search cannot use {name}: none of its parts is a network that is called between two "
            "steps"
        )
    return found


def _check_rounds(run: CallRun, networks: Collection[str], name: str) -> None:
    count = len(run.firsts)
    if any(call.at % count for call in run.calls if call.part in networks):
        raise ValueError(
            f"search cannot use {name} yet: it calls a network between the steps of one round"
        )


def _step_arguments(run: CallRun, name: str) -> dict[str, Any]:
    """Further arguments of the steps, the same in all of them."""
    more = {key: value for key, value in run.firsts[0].more.items() if key != "generator"}
    if held := [key for key, value in more.items() if isinstance(value, Tensor)]:
        raise ValueError(
            f"search cannot use {name} yet: its steps read {' and '.join(held)}, which is kept "
            "from step to step"
        )
    return more


def _begin(scheduler: Any, times: Tensor, name: str) -> int:
    """Where these timesteps begin among those that a scheduler lists, as late as they may."""
    listed = torch.as_tensor(scheduler.timesteps).float().cpu()
    if len(times) <= len(listed):
        fit = torch.isclose(listed.unfold(0, len(times), 1), times.float(), rtol=1e-5).all(1)
        if fit.any():
            return int(fit.nonzero()[-1])
    raise ValueError(
        f"search cannot use {name} yet: it steps its scheduler {len(times)} times, at other "
        f"timesteps than the {len(listed)} that are listed"
    )
