"""Engines of the service: for each configuration one, on the device of this process or on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from ttsnap.cluster.engine import ClusterEngine
from ttsnap.cluster.pool import Pool, TicketT
from ttsnap.cluster.recipe import Recipe
from ttsnap.cluster.sharing import Sharing
from ttsnap.core.protocols import Engine, Reward
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import values
from ttsnap.service.requests import Configuration

FAIR = EngineOptions(fair=True)


class SearchPipeline(Protocol):
    """What is asked of a search pipeline."""

    def engine(self, reward: Sequence[Reward], **given: Any) -> LiveEngine:
        """As SearchMixin.engine."""


class Engines(Protocol):
    """What is served. pipe: the pipeline in this process, which finishes images; rewards: by the names that clients
    use, in this process too, where images are only reported on."""

    pipe: SearchPipeline
    rewards: Mapping[str, Reward]

    def engine(self, configuration: Configuration) -> AbstractContextManager[Engine]:
        """An engine, until the block ends. ValueError where the model cannot do it."""


class OneDevice:
    """Engines of the pipeline and the rewards of this process, which share their weights."""

    def __init__(self, pipe: SearchPipeline, rewards: Mapping[str, Reward]) -> None:
        self.pipe, self.rewards = pipe, rewards

    @contextmanager
    def engine(self, configuration: Configuration) -> Iterator[Engine]:
        rewards = [self.rewards[name] for name in configuration.rewards]
        how = {**values(configuration.sampler), **values(FAIR)}
        yield self.pipe.engine(rewards, **how, **dict(configuration.call))


class ManyDevices:
    """Engines of many actors each. model: how the actors open it; specs: of the rewards, by the names that clients use,
    as `--reward` takes them. pool: gives the actors of a recipe, which it does for all configurations on the same
    devices (RayPool)."""

    def __init__(
        self,
        here: OneDevice,
        model: ModelOptions,
        specs: Mapping[str, str],
        pool: Callable[[Sharing], Pool[TicketT]],
    ) -> None:
        self.pipe, self.rewards = here.pipe, here.rewards
        self.model, self.specs, self._pool = model, specs, pool

    @contextmanager
    def engine(self, configuration: Configuration) -> Iterator[Engine]:
        specs = tuple(self.specs[name] for name in configuration.rewards)
        recipe = Recipe(self.model, specs, configuration.sampler, FAIR, dict(configuration.call))
        pool = self._pool(Sharing(recipe))
        try:
            yield ClusterEngine(pool)
        finally:
            pool.close()
