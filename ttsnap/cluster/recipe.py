"""What an engine is made from: a few names and numbers that travel to other processes, so that weights need not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsnap.core.loading import load_object
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import Spec, values
from ttsnap.options.sampler import SamplerOptions


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
