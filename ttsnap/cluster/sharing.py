"""Engines of several configurations in one process of an actor, which hold the weights of a model once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ttsnap.cluster.recipe import Recipe
from ttsnap.core.loading import load_object
from ttsnap.engine.live import LiveEngine
from ttsnap.options.model import ModelOptions
from ttsnap.rewards.registry import RewardError, make_rewards
from ttsnap.rewards.reward_model import RewardModel


@dataclass(frozen=True)
class Sharing:
    """Makes the engine of a recipe from a pipeline and rewards that stay loaded for as long as the process lives, for
    all recipes of one model. The recipe names its rewards, and no scheduler. names: what results call its rewards."""

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
