"""A family that is added: the change that the how-to shows, in a copy of the package, against stock
diffusers."""

from __future__ import annotations

import re
from pathlib import Path

from ..copied import change_package, copy_package, recipe, run_trial  # noqa: TID252

TRIAL = """
import warnings
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from tests.pipelines.tiny import FAMILIES, PIXART_BETAS, jitter, quiet
from ttsnap.pipelines import upgrade
from ttsnap import SeedPruning

warnings.filterwarnings("ignore", category=DeprecationWarning)
CALL = {**FAMILIES["pixart_sigma"].call, "num_inference_steps": 3}

pipe = quiet(PixArtAlphaPipeline(**FAMILIES["pixart_sigma"].parts(),
                                 scheduler=DPMSolverMultistepScheduler(**PIXART_BETAS)))
config = {**pipe.transformer.config, "sample_size": 128}  # told the size of the picture
with torch.random.fork_rng():
    torch.manual_seed(0)
    pipe.transformer = jitter(PixArtTransformer2DModel.from_config(config))
assert pipe.transformer.use_additional_conditions
twin = upgrade(pipe)
for change in ({}, {"guidance_scale": 1.0}, {"height": 64, "width": 32, "negative_prompt": "snow"}):
    check(pipe, **{**CALL, **change})
prompts = ["a cat", "two dogs in snow"]
out = twin(prompts, search=SeedPruning(4, (0.5,), steps=(1,)), reward="brightness", seed=3, output_type="pt", **CALL)
for prompt, image, result in zip(prompts, out.images, out.search):
    again = pipe(prompt, generator=torch.Generator().manual_seed(result.best.seed), output_type="pt", **CALL).images[0]
    torch.testing.assert_close(image, again, atol=1e-4, rtol=1e-4)
with pytest.raises(ValueError, match="callback"):
    twin("a cat", search="best-of-n", reward="brightness", budget="9nfe", callback=print, **CALL)
"""


def test_a_new_family_is_the_change_of_the_how_to(tmp_path: Path) -> None:
    copy_package(tmp_path)
    touched = change_package(tmp_path, "family.diff")
    assert touched == ["pipelines/families/pixart_alpha.py", "pipelines/__init__.py"]
    (check,) = re.findall(r"^```python\n(.*?)^```", recipe("A pipeline family"), re.S | re.M)
    run_trial(check + TRIAL, tmp_path)
