"""LoRAs that strangers made: what their metadata asks for is held to what their tensors are, before peft reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from ttsnap.pipelines.lora import HEAD_BYTES, load_lora, parse_lora

from .tiny import save_lora, shared

MODULES = ["to_q", "to_k"]
FOREVER, FIRST = "([a-z_.0-9]+)+!", "transformer_blocks.0.attn.to_q"


@pytest.fixture
def pipe() -> Any:
    made = shared("sd3")
    yield made
    made.unload_lora_weights()  # it is shared by all tests


@pytest.fixture
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = save_lora(shared("sd3"), tmp_path_factory.mktemp("made"), rank=2)
    made = load_file(folder / "pytorch_lora_weights.safetensors")
    return {name: tensor for name, tensor in made.items() if any(f".{module}." in name for module in MODULES)}


def written(folder: Path, tensors: dict[str, torch.Tensor], changes: Mapping[str, Any]) -> str:
    """A LoRA as diffusers writes it, its configuration in the metadata, with these changes."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=MODULES).to_dict() | {"target_modules": MODULES} | changes
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=list)
    save_file(tensors, folder / "x.safetensors", {"format": "pt", "lora_adapter_metadata": about})
    return str(folder)


def test_a_scale_stands_after_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "own:2").touch()
    names = {
        "a/b": ("a/b", 1),
        "a/b:0.5": ("a/b", 0.5),
        "C:x": ("C:x", 1),
        f"{tmp_path}/own:2": (f"{tmp_path}/own:2", 1),
    }
    assert {name: parse_lora(name) for name in names} == names


@pytest.mark.parametrize("changes", [
    {}, {"rank_pattern": {f"^{FIRST}": 1}, "alpha_pattern": {FIRST: 8}},
    {"target_modules": r".*\.attn\.(to_q|to_k)$"}, {"target_modules": "all-linear"},
])  # fmt: skip
def test_what_trainers_write_is_loaded(pipe: Any, tensors: Any, tmp_path: Path, changes: Any) -> None:
    for name in tensors if "rank_pattern" in changes else ():
        if "0.attn.to_q" in name:
            tensors[name] = (tensors[name][:1] if "lora_A" in name else tensors[name][:, :1]).contiguous()
    load_lora(pipe, written(tmp_path, tensors, changes))
    config = pipe.transformer.peft_config["lora"]
    assert (config.r, config.lora_alpha) == (2, 4)


@pytest.mark.parametrize("changes", [
    {"target_modules": FOREVER}, {"target_modules": ".*.*.*.*.*"}, {"exclude_modules": FOREVER},
    {"target_modules": "(t|t)(r|r)(a|a)(n|n)(s|s)(f|f)(o|o)(r|r)(m|m)(e|e)(r|r)"},
    {"layers_pattern": FOREVER, "layers_to_transform": [0]}, {"rank_pattern": {FOREVER: 2}},
    {"alpha_pattern": {FOREVER: 2}}, {"rank_pattern": {"to_q": 10**8}}, {"r": 10**9}, {"r": -1}, {"r": "2"},
    {"lora_alpha": float("nan")}, {"lora_alpha": 1e300}, {"alpha_pattern": {"to_q": float("inf")}},
])  # fmt: skip
def test_a_configuration_that_would_take_for_ever_is_refused(
    pipe: Any, tensors: Any, tmp_path: Path, changes: Any
) -> None:
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"says transformer.{name} = ") as caught:
        load_lora(pipe, written(tmp_path, tensors, changes))
    assert "\n" not in str(caught.value)
    assert "lora" not in getattr(pipe.transformer, "peft_config", {})


def test_a_head_of_megabytes_is_not_parsed(pipe: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": "[]," * (HEAD_BYTES // 3)})
    for where in (tmp_path, tmp_path / "x.safetensors"):
        with pytest.raises(ValueError, match=r"x.safetensors has [\d,]+ bytes .* 8,388,608"):
            load_lora(pipe, str(where))
