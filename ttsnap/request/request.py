"""A search as every door asks for it, and the engine that it runs on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, TypeAlias

from ttsnap.algorithms import make_algorithm, spec_of
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.checklist import is_item, is_list
from ttsnap.core.needs import Need, declared
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.core.selection import Selection
from ttsnap.files.pictured import blanks
from ttsnap.loop.budget import Budget
from ttsnap.loop.request import LoopSearch
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import Spec
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.options.selection import SelectionOptions, listed

AlgorithmSpec: TypeAlias = str | Mapping[str, object] | Algorithm
"""What make_algorithm takes. From a stranger, only what `ttsnap.request.limits.search_of` let
pass."""

SEEDS = 2**64
"""How many seeds torch takes."""
_INSTEAD_OF = {
    "num_inference_steps": {"sigmas", "timesteps"},
    "negative_prompt": {"negative_prompt_embeds"},
}
"""Arguments in whose presence a default of another one would contradict them."""


Drafted: TypeAlias = Callable[
    [Algorithm, SamplerOptions, Sequence[Spec], Mapping[str, Any]], SamplerOptions
]
"""The sampler with its drafter decided, by the algorithm, a sampler, the rewards, and the complete
call."""


Split: TypeAlias = Callable[
    [Sequence[Prompt], Mapping[str, Any]], tuple[Sequence[Prompt], Mapping[str, Any]]
]
"""The prompts with what lists in a call have for each, and the call as engines take it."""
Parts: TypeAlias = Callable[[Spec, Sequence[str]], tuple[Spec, ...]]
"""A reward, and the texts of all prompts that it reads -> what a search carries for it."""


@dataclass(frozen=True)
class ModelDefaults:
    """What a model decides where users say nothing. `prepare` puts it in, for every door.

    call: arguments of the model's own call, as steps and guidance. reward: a name of
        reward_models.registry.REWARDS.
    draft: a drafter as `draft=` takes it. These are in the file that
        `ttsnap.pipelines.model_defaults` reads.
    """

    call: Mapping[str, Any] = field(default_factory=dict)
    reward: str | None = None
    draft: str | None = None
    takes: Collection[str] | None = field(default=None, compare=False)
    """The arguments of its call; None where that is not known yet."""
    canonical: Callable[[str], str] = field(default=str, compare=False)
    """A prompt in the model's own words. ValueError for one that it cannot read."""
    parts: Parts = field(default=lambda reward, texts: (reward,), compare=False)
    """The items that a search carries in place of a checklist, and all other rewards as they are;
    by default a checklist is one reward, the product of its answers."""
    drafted: Drafted | None = field(default=None, compare=False)
    """Decides on drafts; None: there is no drafter but one that is named."""
    split: Split = field(default=lambda prompts, call: (prompts, call), compare=False)
    """Gives each prompt its own of the lists in a call; by default there are none."""

    def completed(self, call: Mapping[str, Any], steps: int | None = None) -> dict[str, Any]:
        """The arguments of a call with those that are not given. steps: in place of its own."""
        own = self.call if steps is None else {**self.call, "num_inference_steps": steps}
        more = {
            name: value
            for name, value in own.items()
            if (self.takes is None or name in self.takes)
            and not _INSTEAD_OF.get(name, set()) & call.keys()
        }
        return {**more, **call}


def fitted_steps(algorithm: Algorithm) -> int | None:
    """The denoising steps that an algorithm was fitted to, where it says any."""
    return algorithm.denoising_steps if isinstance(algorithm, SeedPruning) else None


@dataclass(frozen=True)
class Lora:
    """A LoRA that an operator offers by a name."""

    name: str
    """By which clients and metadata call it."""
    path: str = field(repr=False)
    """The file of its weights."""
    scale: float = 1.0

    def __str__(self) -> str:
        return self.name if self.scale == 1.0 else f"{self.name}:{self.scale}"


@dataclass(frozen=True)
class EngineSpec:
    """One engine. Searches of equal specs share its batches, whatever their prompts; other
    processes make it from this.

    Where the rewards are names it can be hashed, as keys of a table are.
    """

    model: ModelOptions
    """Which pipeline, on which device, in which dtype, with which LoRA."""
    rewards: tuple[Spec, ...]
    """Names, as `--reward` takes them. A function or an object is sent whole, with its weights.
    Empty: the one that the model recommends."""
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    batch: EngineOptions = field(default_factory=EngineOptions)
    call: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the pipeline's own call (steps, guidance, sizes). Where engines are shared, they
    say of a prompt only that it has a negative one (""), and of what size its pictures are (Blank):
    latents of other shapes share no batch."""
    loras: tuple[Lora, ...] = ()
    """Those of a service's request, besides the model's own. The service puts them on a twin of its
    pipeline."""
    scheduler: Any = field(default=None, hash=False)
    """One that was put in place of the model's own, else None."""

    def sampled(self, sampler: SamplerOptions) -> EngineSpec:
        """The same by another sampler."""
        return replace(self, sampler=sampler)

    @property
    def undrafted(self) -> EngineSpec:
        """The same without a drafter."""
        return self.sampled(replace(self.sampler, draft=None))


@dataclass(frozen=True)
class SearchRequest:
    """One search: for what, by what, on which engine, for how much.

    ValueError when it is made for what can be refused without the model: no prompts, an unknown
    algorithm, a seed or a number of images out of range.
    """

    prompts: tuple[Prompt, ...]
    engine: EngineSpec
    search: AlgorithmSpec
    budget: Budget
    """Of each prompt."""
    seed: int = 0
    """Candidate i of a prompt starts from seed + i."""
    keep: int = 1
    """Images to return for each prompt."""
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Of the algorithm, over those that `search` has."""
    shared: bool = False
    """Whether the prompts share their budgets."""
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    """What counts as best. Rewards that are only required join those of the engine, behind them."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("no prompts: give at least one")
        checked_seed(self.seed)
        Selection(keep=self.keep)
        LoopSearch(self.algorithm)

    @cached_property
    def algorithm(self) -> Algorithm:
        return make_algorithm(self.search, **self.options)

    @property
    def label(self) -> str:
        """The algorithm in a line, the same for equal ones: its name where it has no options."""
        if isinstance(self.search, str) and not self.options:
            return self.search
        return json.dumps(spec_of(self.algorithm), sort_keys=True, default=str)

    def by(
        self,
        search: AlgorithmSpec,
        options: Mapping[str, object] | None = None,
        sampler: SamplerOptions | None = None,
    ) -> SearchRequest:
        """The same by another algorithm, and perhaps by another sampler."""
        engine = self.engine if sampler is None else self.engine.sampled(sampler)
        return replace(self, search=search, options=options or {}, engine=engine)

    @property
    def model(self) -> str:
        """The name of the model, as users gave it."""
        return self.engine.model.model

    @property
    def prompt(self) -> Prompt:
        """The only prompt, at doors that take one."""
        (prompt,) = self.prompts
        return prompt


@dataclass(frozen=True)
class Prepared:
    """A search with all that its model decides: what its engine is made by, and what the loop runs.

    It is final: another one is made of another request.
    """

    request: SearchRequest
    """As it was asked for."""
    prompts: tuple[Prompt, ...]
    """In the model's own words."""
    engine: EngineSpec
    """Complete. Rewards that are only required are the last ones."""
    given: Mapping[str, Any]
    """Arguments of the pipeline's call, complete, as records tell them: lists have an entry for
    each prompt."""
    loop: LoopSearch

    @property
    def algorithm(self) -> Algorithm:
        return self.loop.algorithm

    @property
    def budget(self) -> Budget:
        return self.loop.budget

    @property
    def selection(self) -> Selection:
        return self.loop.selection

    @property
    def seed(self) -> int:
        return self.loop.seed

    @property
    def prompt(self) -> Prompt:
        """The only prompt, at doors that take one."""
        (prompt,) = self.prompts
        return prompt

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call for the only prompt, its own among them."""
        own = {} if self.prompt.negative is None else {"negative_prompt": self.prompt.negative}
        return {**self.engine.call, **own, **self.prompt.inputs}

    @property
    def rewards(self) -> tuple[Spec, ...]:
        """The rewards that are searched for, without those that are only required."""
        return self.engine.rewards[
            : None if self.selection.gate is None else self.selection.gate.counted
        ]

    @property
    def doubt(self) -> str | None:
        """What is told of a search with other denoising steps than its schedule was fitted to."""
        fitted = fitted_steps(self.request.algorithm)
        steps = self.engine.call.get("num_inference_steps")
        if fitted is None or steps in (None, fitted):
            return None
        return f"the schedule was tuned for {fitted} denoising steps, and this search takes {steps}"


def prepare(request: SearchRequest, model: ModelDefaults) -> Prepared:
    """The search with all that is left to its model, checked. Nothing else fills anything in.

    ValueError where there is no reward, for prompts that the model cannot read, and for what its
    drafter refuses.
    """
    prompts = prompts_of(request, model)
    texts = [prompt.read for prompt in prompts]
    rewards = rewards_of(request, model, texts)
    options = selection_of(request, model, rewards, texts)
    sampler = sampler_of(request, model, rewards)
    selection = options.read(request.keep, rewards)
    ascends = sampler.guide is not None or Need.ASCEND in declared(request.algorithm.needs)
    if ascends and selection.gate is not None and selection.gate.scores_more:
        raise ValueError(
            "gradients follow all rewards of an engine, also those that are only required; require"
            " what is searched for, or search without gradients"
        )
    call = call_of(request, model)
    split, shared = model.split(prompts, call)
    compared = (request.selection.likeness or AUTO) if selection.differing else None
    engine = replace(
        request.engine,
        rewards=options.scored(rewards),
        call=dict(shared),
        sampler=sampler,
        batch=replace(request.engine.batch, features=compared),
    )
    seed = checked_seed(request.seed)
    loop = LoopSearch(request.algorithm, request.budget, selection, seed, request.shared)
    return Prepared(request, tuple(split), engine, call, loop)


def prompts_of(request: SearchRequest, model: ModelDefaults) -> tuple[Prompt, ...]:
    """The prompts in the model's own words; where it reads embeddings, as they are."""
    if request.engine.call.get("prompt_embeds") is not None:
        return request.prompts
    return tuple(replace(each, text=model.canonical(each.text)) for each in request.prompts)


def rewards_of(
    request: SearchRequest, model: ModelDefaults, texts: Sequence[str]
) -> tuple[Spec, ...]:
    """What is searched for, the items of a checklist first. ValueError where nobody names it."""
    rewards = request.engine.rewards or listed(model.reward)
    if not rewards:
        raise ValueError(
            f"a search with model {request.model} needs a reward: a known name,"
            " file.py:function or module:attribute, as --reward; in Python reward=, which takes"
            " functions and lists as well"
        )
    parts = [part for reward in rewards for part in model.parts(reward, texts)]
    return tuple(sorted(parts, key=lambda part: not is_item(part)))


def selection_of(
    request: SearchRequest, model: ModelDefaults, rewards: Sequence[Spec], texts: Sequence[str]
) -> SelectionOptions:
    """What counts as best, where a requirement on a checklist is one on each of its items."""
    options = request.selection
    bounds = (*options.requirements, *options.ends)
    lists = [bound.reward for bound in bounds if is_list(bound.reward)]
    items = tuple(filter(is_item, rewards))
    return options.over(items or (model.parts(lists[0], texts) if lists else ()))


def call_of(request: SearchRequest, model: ModelDefaults) -> dict[str, Any]:
    """The call of all prompts, complete. Engines are for prompts of one shape, whatever these
    show."""
    call = model.completed(request.engine.call, fitted_steps(request.algorithm))
    first = request.prompts[0]
    negative = {} if first.negative is None else {"negative_prompt": ""}
    return call | blanks(first.inputs) | negative


def sampler_of(
    request: SearchRequest, model: ModelDefaults, rewards: Sequence[Spec]
) -> SamplerOptions:
    """The sampler with its drafter."""
    call = call_of(request, model)
    for prompt in request.prompts:
        call |= prompt.inputs
        if prompt.negative:
            call["negative_prompt"] = prompt.negative
    sampler = request.engine.sampler
    if model.drafted is None:
        return sampler
    return model.drafted(request.algorithm, sampler, rewards, call)


def checked_seed(seed: object) -> int:
    """A seed from 0 to 2^64 - 1, as torch makes it of a negative one: -5 is 2^64 - 5. ValueError
    for others."""
    if not isinstance(seed, Integral) or not -SEEDS // 2 <= int(seed) < SEEDS:
        raise ValueError(
            f"seed must be a whole number in [-2^63, 2^64), as torch takes it, got {seed!r}"
        )
    return int(seed) % SEEDS
