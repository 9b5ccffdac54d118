"""LoRAs that strangers made: what their metadata asks for is held to what their tensors are, before peft reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from ttsnap.pipelines.lora import HEAD_BYTES, load_lora

from .tiny import shared

MODULES = ["to_q", "to_k"]
FOREVER = "([a-z_.0-9]+)+!"


@pytest.fixture
def pipe() -> Any:
    made = shared("sd3")
    yield made
    made.unload_lora_weights()  # it is shared by all tests


@pytest.fixture
def tensors(pipe: Any) -> dict[str, torch.Tensor]:
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=MODULES), "made")
    found = get_peft_model_state_dict(pipe.transformer, adapter_name="made")
    pipe.transformer.delete_adapters("made")
    pipe.unload_lora_weights()
    return {f"transformer.{name}": tensor.clone() for name, tensor in found.items()}


def written(folder: Path, tensors: dict[str, torch.Tensor], changes: Mapping[str, Any]) -> str:
    """A LoRA as diffusers writes it, its configuration in the metadata, with these changes."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=MODULES).to_dict() | {"target_modules": MODULES} | changes
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=list)
    save_file(tensors, folder / "x.safetensors", {"format": "pt", "lora_adapter_metadata": about})
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "rank_pattern": {"^transformer_blocks.0.attn.to_q": 1},
            "alpha_pattern": {"transformer_blocks.0.attn.to_q": 8},
        },
        {"target_modules": r".*\.attn\.(to_q|to_k)$"},
        {"target_modules": "all-linear"},
    ],
)
def test_what_trainers_write_is_loaded(
    pipe: Any, tensors: dict[str, torch.Tensor], tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    if "rank_pattern" in changes:
        tensors = {k: v[:1] if "lora_A" in k and "0.attn.to_q" in k else v for k, v in tensors.items()}
        tensors = {k: v[:, :1] if "lora_B" in k and "0.attn.to_q" in k else v for k, v in tensors.items()}
        tensors = {k: v.contiguous() for k, v in tensors.items()}
    load_lora(pipe, written(tmp_path, tensors, changes))
    config = pipe.transformer.peft_config["lora"]
    assert (config.r, config.lora_alpha) == (2, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": FOREVER},
        {"target_modules": "(t|t)(r|r)(a|a)(n|n)(s|s)(f|f)(o|o)(r|r)(m|m)(e|e)(r|r)!"},
        {"target_modules": ".*.*.*.*.*!"},
        {"exclude_modules": FOREVER},
        {"layers_pattern": FOREVER, "layers_to_transform": [0]},
        {"rank_pattern": {FOREVER: 2}},
        {"alpha_pattern": {FOREVER: 2}},
        {"rank_pattern": {"to_q": 10**8}},
        {"r": 10**9},
        {"r": -1},
        {"r": "2"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e300},
        {"alpha_pattern": {"to_q": float("inf")}},
    ],
)
def test_a_configuration_that_would_take_for_ever_is_refused(
    pipe: Any, tensors: dict[str, torch.Tensor], tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"its metadata says transformer.{name} = .*, which is not taken") as caught:
        load_lora(pipe, written(tmp_path, tensors, changes))
    assert "\n" not in str(caught.value)
    assert "lora" not in getattr(pipe.transformer, "peft_config", {})


def test_a_head_of_megabytes_is_not_parsed(pipe: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": "[]," * (HEAD_BYTES // 3)})
    for where in (tmp_path, tmp_path / "x.safetensors"):
        with pytest.raises(ValueError, match=r"x.safetensors has [\d,]+ bytes before its tensors; at most 8,388,608"):
            load_lora(pipe, str(where))
