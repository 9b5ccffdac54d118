"""What an engine is made from: a few names and numbers that travel to other processes, so that weights need not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ttsnap.core.loading import load_object
from ttsnap.core.protocols import Scores
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import Spec, values
from ttsnap.options.sampler import SamplerOptions
from ttsnap.rewards.registry import RewardError, heavy, make_rewards
from ttsnap.rewards.reward_model import RewardModel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How to make one LiveEngine. It is sent to a process of its own, which calls `build` there.

    model: which pipeline, on which device, in which dtype, with which LoRA. reward: names, as `--reward` takes them; a
    function or an object is sent whole, with its weights. call: arguments of the pipeline's own call (steps, guidance,
    sizes). scheduler: one that was put in place of the model's own, else None.
    """

    model: ModelOptions
    reward: Spec
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    call: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Any = None

    def build(self) -> LiveEngine:
        """Load the weights, here, and make the engine. ValueError where something is unknown or does not fit."""
        return self.engine_of(self.opened())

    def opened(self) -> Any:
        """The pipeline, loaded. ValueError for an unknown one."""
        pipe = load_object("ttsnap.pipelines.opening:opened")(self.model)
        if self.scheduler is not None:
            pipe.scheduler = self.scheduler
        return pipe

    def engine_of(self, pipe: Any) -> LiveEngine:
        """An engine of this pipeline. ValueError where something does not fit."""
        load_object("ttsnap.pipelines.opening:check_call")(pipe, self.call)
        engine: LiveEngine = pipe.engine(self.reward, **values(self.sampler), **values(self.engine), **self.call)
        return engine

    def parted(self) -> tuple[Recipe, RewardsRecipe]:
        """The same without its heavy rewards, and those. ValueError where it has none."""
        specs = list(self.reward) if isinstance(self.reward, list | tuple) else [self.reward]
        columns = tuple(i for i, spec in enumerate(specs) if heavy(spec))
        if not columns:
            raise ValueError("none of these rewards has a network that is worth a device of its own; leave "
                             "reward_actors out, or say heavy = True in your own reward's class")  # fmt: skip
        apart = RewardsRecipe(tuple(specs[i] for i in columns), columns, self.model.device)
        left = [RemoteReward(f"reward {i + 1}") if i in columns else spec for i, spec in enumerate(specs)]
        return replace(self, reward=left), apart


@dataclass(frozen=True)
class RewardsRecipe:
    """How to make the rewards of an actor that has nothing else. columns: their places among all of a search."""

    rewards: tuple[Spec, ...]
    columns: tuple[int, ...]
    device: str

    def build(self) -> tuple[RewardModel, ...]:
        """Load the weights, here. ValueError for an unknown one, and for rewards that must be where the latents are."""
        made = make_rewards(self.rewards, device=self.device)
        for reward in made:
            if reward.estimates != "pixels" or reward.tokens or reward.needs:
                raise ValueError(f"reward {reward.name!r} reads more than images and prompts, or asks a model behind "
                                 "an API: it is asked where the latents are; leave reward_actors out")  # fmt: skip
        return made


class RemoteReward(RewardModel):
    """Stands for a reward of another process: an engine makes its images, and leaves its scores open."""

    remote = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise RuntimeError(f"reward {self.name!r} is asked in another process")

    def differentiable(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise ValueError(f"gradients of reward {self.name!r} are taken where the latents are; leave reward_actors out")


@dataclass(frozen=True)
class Sharing:
    """Makes the engine of a recipe from a pipeline and rewards that stay loaded for as long as the process lives, so
    that all recipes of one model hold its weights once. The recipe names its rewards, and no scheduler. names: what
    results call its rewards."""

    recipe: Recipe
    names: tuple[str, ...]

    def build(self) -> LiveEngine:
        """As Recipe.build; but RuntimeError where the model cannot be loaded here, and RewardError where a reward
        cannot, which is no mistake of whoever wants this engine."""
        model = self.recipe.model
        try:
            pipe = _pipe(model)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        try:
            made = [_reward(spec, model) for spec in self.recipe.reward]
        except ValueError as error:
            raise RewardError(str(error)) from error
        rewards = [reward.called(name) for name, reward in zip(self.names, made, strict=True)]
        return replace(self.recipe, reward=rewards).engine_of(pipe)


@cache
def _pipe(model: ModelOptions) -> Any:
    return load_object("ttsnap.pipelines.opening:opened")(model)


@cache
def _reward(spec: str, model: ModelOptions) -> RewardModel:
    place, dtype = load_object("ttsnap.pipelines.opening:reward_placement")(model.device, model.dtype)
    (reward,) = make_rewards(spec, device=place, dtype=dtype)
    return reward
