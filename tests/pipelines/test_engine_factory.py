"""A builder makes, in any process, the engine that the command line makes."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from ttsnap import search
from ttsnap.algorithms import make_algorithm
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.engine_factory import EngineBuilder
from ttsnap.request.request import EngineSpec

CPU = ModelOptions(device="cpu", dtype="float32")
CALL = {**defaults(), "num_inference_steps": 4}


def test_what_it_builds_after_a_journey_finds_what_the_pipeline_finds() -> None:
    builder = EngineBuilder(EngineSpec(CPU, ("scenes",), SamplerOptions(kernel="ode"), EngineOptions(2), CALL))
    travelled: EngineBuilder = pickle.loads(pickle.dumps(builder))
    assert travelled == builder
    assert hash(travelled.spec) == hash(builder.spec)
    there = travelled.build()
    here = load().engine("scenes", kernel="ode", batch_size=2, num_inference_steps=4)
    one, other = (
        search(["a red circle"], make_algorithm("best-of-n", n=2), engine)[0].best for engine in (here, there)
    )
    assert one.seed == other.seed
    torch.testing.assert_close(one.pixels, other.pixels)


def test_the_scheduler_that_was_put_in_place_of_another_travels() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    spec = EngineSpec(CPU, ("scenes",), call=CALL)
    shifted = EngineBuilder(replace(spec, scheduler=FlowMatchEulerDiscreteScheduler(shift=9)))
    levels = pickle.loads(pickle.dumps(shifted)).build().grid.levels
    assert levels[2] > EngineBuilder(spec).build().grid.levels[2]


def test_what_is_unknown_is_said_where_it_is_built() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        EngineBuilder(EngineSpec(ModelOptions("./nowhere"), ("scenes",))).build()
