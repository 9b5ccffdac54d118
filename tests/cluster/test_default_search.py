"""What people run by default, a pruning of drafts on the embedded model, on actors that die."""

from __future__ import annotations

import pytest
import torch

from ttsnap import search
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import load
from ttsnap.pipelines.engine_factory import EngineBuilder
from ttsnap.pipelines.run import decisions_of
from ttsnap.request.request import EngineSpec, SearchRequest, prepare

from .local import LocalPool

pytestmark = pytest.mark.usefixtures("shallow_model")
PROMPTS = tuple(
    Prompt(f"{number} {colour} {shape}")
    for number in ("two", "three")
    for colour in ("red", "green")
    for shape in ("circles", "crosses", "squares", "triangles")
)


@pytest.fixture
def asked():
    """The default search for so many prompts, and what makes its engine anew, as in a process of
    its own."""

    def ask(prompts):
        model = ModelOptions("embedded", device="cpu", dtype="float32")
        engine = EngineSpec(model, (), SamplerOptions(), EngineOptions(4), {})
        request = SearchRequest(PROMPTS[:prompts], engine, "seed-pruning", Budget(nfe=16))
        found = prepare(request, decisions_of(load(dtype=torch.float32)))
        assert found.engine.sampler.draft == "embedded"
        return found, EngineBuilder(found.engine).build

    return ask


def kills(pool, at):
    """A listener that kills an actor at such an event."""
    events = []

    def listen(event):
        events.append(event)
        if len(events) == at:
            pool.dead.add(1)

    return listen


@pytest.mark.parametrize("prompts", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_it_finds_the_same_images_whenever_an_actor_dies(asked, prompts):
    found, make = asked(prompts)
    how = found.prompts, found.algorithm
    events = []
    alone = search(*how, make(), found.budget, on_event=events.append)
    for share in (0.1, 0.5, 0.9):
        pool = LocalPool(make, 2)
        again = search(
            *how, ClusterEngine(pool), found.budget, on_event=kills(pool, int(share * len(events)))
        )
        for one, other in zip(alone, again, strict=True):
            assert one.best.seed == other.best.seed
            torch.testing.assert_close(one.best.pixels, other.best.pixels, atol=1e-4, rtol=1e-4)
            assert one.spent.cost == other.spent.cost
