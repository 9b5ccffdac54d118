"""Every workflow of a modular pipeline that search runs, against the stock modular pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL.Image import Image
from torchvision.transforms.functional import to_tensor

from ttsnap import BestOfN, SeedPruning
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.modular.workflows import ONE_EXPERT, WORKFLOWS, workflow_for

from .tiny import CASES, SLOW, built, named

PROMPTS = ["a cat", "two dogs in snow"]
PRUNING = SeedPruning(4, (0.5,), steps=(1,))
FIRST = {
    *{case.pipeline: name for name, case in reversed(CASES.items()) if name not in SLOW}.values(),
    *("sd3 image2image", "sdxl inpainting", "qwen_image inpainting", "sdxl controlnet", "ltx image2video"),
}
"""A case of each class, and those whose conditions differ by candidate or by frame."""


def bright(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


def stock(name: str, seed: int, prompt: str) -> Any:
    """The image (3, H, W), or video (T, 3, H, W), that the stock modular pipeline makes from a seed."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    workflow = workflow_for(case.pipeline, case.call)
    made = built(case.pipeline, case.parts)(
        prompt=prompt, generator=generator, output_type=workflow.ends_with["output_type"], output=workflow.output,
        **case.call,
    )  # fmt: skip
    return to_tensor(made[0]) if isinstance(made[0], Image) else made[0]


def found(name: str, prompts: Any, algorithm: Any, **options: Any) -> Any:
    """The results of a search of this workflow, with all images that it finished."""
    case = CASES[name]
    pipe = upgrade(built(case.pipeline, case.parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=prompts, search=algorithm, reward=bright, seed=2, output_type="pt", **case.call, **options
    ).search


@pytest.mark.parametrize("name", named({*CASES} - FIRST))
def test_one_candidate_is_the_image_of_the_stock_pipeline(name: str) -> None:
    (result,) = found(name, PROMPTS[1], BestOfN(1), batch_size=1)
    assert (result.images[0].image - stock(name, 2, PROMPTS[1])).abs().max() <= CASES[name].single


def pruned(name: str) -> tuple[Any, int]:
    """The results of a search whose rows share batches at different steps, and how many rows its networks saw."""
    case = CASES[name]
    workflow, pipe = workflow_for(case.pipeline, case.call), built(case.pipeline, case.parts)
    networks = [
        getattr(pipe, name) for name in (workflow.network, *["transformer_2"] * (workflow.together == ONE_EXPERT))
    ]
    rows = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        rows.append(len(x))

    hooks = [net.register_forward_pre_hook(count, with_kwargs=True) for net in networks]
    try:
        results = found(name, PROMPTS, PRUNING, batch_size=5)
    finally:
        for hook in hooks:
            hook.remove()
    return results, sum(rows)


@pytest.mark.parametrize("name", named(FIRST))
def test_pruned_winners_in_mixed_batches_are_made_again_from_their_seeds(name: str) -> None:
    """Rows of two prompts at different steps share batches, and each image is still that of its seed alone. The ledger
    is what the network was called for."""
    results, rows = pruned(name)
    assert rows == sum(result.spent.forward_passes for result in results) > 0
    for result in results:
        difference = (result.best.image - stock(name, result.best.seed, result.prompt)).abs().max()
        assert difference < CASES[name].tolerance, (name, result.best.seed, float(difference))


def test_every_workflow_that_is_not_refused_has_a_case() -> None:
    tried = {(case.pipeline, workflow_for(case.pipeline, case.call).given) for case in CASES.values()}
    declared = {(cls, w.given) for cls, workflows in WORKFLOWS.items() for w in workflows if w.why_not is None}
    assert declared - tried == {("FluxKontextModularPipeline", frozenset())}  # the blocks of FLUX's
