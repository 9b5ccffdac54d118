"""A builder makes, in any process, the engine that the command line makes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from unittest.mock import Mock, call

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ttsnap import search
from ttsnap.algorithms import make_algorithm
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.engine_factory import EngineBuilder, in_ram
from ttsnap.request.request import EngineSpec


def test_what_it_builds_after_a_journey_finds_what_the_pipeline_finds():
    model, how = (
        ModelOptions(device="cpu", dtype="float32"),
        {**defaults(), "num_inference_steps": 4},
    )
    builder = EngineBuilder(
        EngineSpec(model, ("scenes",), SamplerOptions(kernel="ode"), EngineOptions(2), how)
    )
    travelled = pickle.loads(pickle.dumps(builder))
    assert (travelled, hash(travelled.spec)) == (builder, hash(builder.spec))
    engines = (
        load().engine("scenes", kernel="ode", batch_size=2, num_inference_steps=4),
        travelled.build(),
    )
    one, other = (
        search(["a red circle"], make_algorithm("best-of-n", n=2), engine)[0].best
        for engine in engines
    )
    assert one.seed == other.seed
    torch.testing.assert_close(one.pixels, other.pixels)
    # A scheduler that was put in place of another travels, too.
    shifted = EngineBuilder(
        replace(builder.spec, scheduler=FlowMatchEulerDiscreteScheduler(shift=9))
    )
    assert pickle.loads(pickle.dumps(shifted)).build().grid.levels[2] > engines[1].grid.levels[2]
    with pytest.raises(ValueError, match="nowhere"):
        EngineBuilder(EngineSpec(ModelOptions("./nowhere"), ("scenes",))).build()


def test_a_pipeline_leaves_its_device_to_the_actors_until_they_end(
    monkeypatch,
):
    monkeypatch.setattr("torch.accelerator.empty_cache", lambda: None)
    pipe = Mock(device=torch.device("cuda:0"), _all_hooks=[])
    with in_ram(pipe):
        assert pipe.to.call_args == call("cpu")
    assert pipe.to.call_args == call(torch.device("cuda:0"))
    for there in (
        Mock(device=torch.device("cpu"), _all_hooks=[]),
        Mock(device=torch.device("cuda"), _all_hooks=[1]),
    ):
        with in_ram(there):
            there.to.assert_not_called()
