"""The block for diffusers' modular hub, read from its folder as from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam, SequentialPipelineBlocks
from diffusers.utils import dynamic_modules_utils

from ttsnap.scenes import weights_path

from .tiny import CASES, ONE, stock, twin

FOLDER = Path(__file__).parents[3] / "block"
PRUNED = {**ONE, "search": "seed-pruning", "budget": "4images", "output_type": "pt"}


class Spoken(ModularPipelineBlocks):
    """A block that writes a prompt."""

    @property
    def intermediate_outputs(self):
        return [OutputParam("prompt")]

    @property
    def inputs(self):
        return [InputParam("about")]

    def __call__(self, components, state):
        state.set("prompt", f"a picture of {state.get('about')}")
        return components, state


@pytest.fixture(scope="module", autouse=True)
def _modules_cache(tmp_path_factory):
    """diffusers copies custom code to a cache that it puts on sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        copies = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", copies)
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(scope="module")
def block():
    return ModularPipelineBlocks.from_pretrained(FOLDER, trust_remote_code=True)


def over(name):
    return ModularPipelineBlocks.from_pretrained(
        FOLDER, trust_remote_code=True, blocks=stock(name).blocks
    )


def with_parts(blocks, name):
    pipe = blocks.init_pipeline()
    pipe.update_components(**{n: p for n, p in stock(name).components.items() if p is not None})
    return pipe


@pytest.mark.parametrize("name", ["sdxl", "ltx"])
def test_it_finds_what_the_search_finds(name):
    call = {**PRUNED, **CASES[name].call}
    pipe = with_parts(over(name), name)
    assert type(pipe) is type(stock(name))
    found, direct = pipe(prompt="a cat", **call), twin(name)(prompt="a cat", **call)
    assert found.results[0].best.seed == direct.search[0].best.seed
    assert found.results[0].spent.cost == direct.search[0].spent.cost
    made = (found.images, direct.images) if name == "sdxl" else (found.videos, direct.frames)
    assert torch.equal(*made)


def test_it_stands_among_other_blocks():
    blocks = SequentialPipelineBlocks.from_blocks_dict({"say": Spoken(), "search": over("sdxl")})
    call = {**PRUNED, **CASES["sdxl"].call}
    found = with_parts(blocks, "sdxl")(about="cats", **call, output=["images", "results"])
    assert found["results"][0].prompt == "a picture of cats"
    assert torch.equal(found["images"], twin("sdxl")(prompt="a picture of cats", **call).images)


def test_it_takes_the_blocks_of_the_model_that_it_is_given(block):
    pipe = block.init_pipeline(weights_path())
    assert type(pipe).__name__ == "StableDiffusion3ModularPipeline"
    assert {"transformer", "vae", "guider"} <= set(pipe.component_names)
    assert {"prompt", "reward", "budget"} <= set(pipe.blocks.input_names)
    assert "TODO" not in block.doc
    with pytest.raises(ValueError, match="search="):
        pipe(prompt="a cat")


def test_its_folder_is_what_diffusers_saves(block, tmp_path):
    block.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "modular_config.json").read_text())
    del saved["_diffusers_version"]
    assert saved == json.loads((FOLDER / "modular_config.json").read_text())
