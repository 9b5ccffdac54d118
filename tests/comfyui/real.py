"""ComfyUI itself, from the checkout that the environment variable COMFYUI_PATH names.

It is on no package index, and under the GPL: tests import it, and nothing of it is in this repository.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

LATENT = (1, 8, 8, 8)
"""The shape of one latent of the embedded model."""


def checkout() -> Path:
    """Its folder. Where there is none, the test is skipped."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no checkout of ComfyUI")
    path = Path(os.environ["COMFYUI_PATH"]).resolve()
    assert (path / "comfy/samplers.py").exists(), f"COMFYUI_PATH is {path}, which is no checkout of ComfyUI"
    return path


def import_comfy() -> None:
    """`comfy` can be imported from here on, for the CPU. It reads the process's arguments once, as it is imported."""
    path = str(checkout())
    if path in sys.path:
        return
    sys.path.append(path)  # last, since it has a package `tests`, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", "--cpu"])
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    assert comfy.cli_args.args.cpu


def tiny_sd3() -> dict[str, Any]:
    """Random weights of a Stable Diffusion 3 of one block, by the names that ComfyUI's loaders know it by.

    It takes latents of 16 channels and the texts of the embedded model.
    """
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 160, "out_features": 64}}
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": 1, "adm_in_channels": 160}
    places = {"num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms", "context_embedder_config": embedder}
    how = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    named = OpenAISignatureMMDITWrapper(**sizes, **places, **how).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in named.items()}


def tiny_sd3_model() -> Any:
    """A MODEL of `tiny_sd3`, made by the loader of the node "Load Diffusion Model"."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(tiny_sd3())
