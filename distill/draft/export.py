"""A finished draft as a folder that plain diffusers loads with `pipe.load_lora_weights(folder)`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save as serialized
from torch import Tensor
from ttsnap.distill.draft.student import WEIGHTS, DraftStudent

from ttsnap.files.writing import part_of, sha256, write_text, write_whole
from ttsnap.sampling.drafts import DraftSettings, write_draft

CARD = "README.md"


def export(student: DraftStudent, pipe: Any, settings: DraftSettings, card: str, folder: Path) -> str:
    """Write the LoRA in bfloat16, with its adapter's configuration, draft.json and a card; the weights' SHA-256.

    The folder appears whole or not at all; one that is there is replaced.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(student.net)
    layers = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in tensors.items()}
    temporary = part_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)

    def save(named: dict[str, Tensor], path: str) -> None:
        # One key, as safetensors writes several in any order, and the file should have the same bytes every time.
        write_whole(Path(path), lambda file: file.write(serialized(named, {LORA_ADAPTER_METADATA_KEY: about(student)})))

    try:
        type(pipe).save_lora_weights(temporary, **{f"{student.network}_lora_layers": layers}, save_function=save)
        digest = sha256(temporary / WEIGHTS)
        write_draft(temporary, settings)
        write_text(temporary / CARD, card)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def about(student: DraftStudent) -> str:
    """The adapter's configuration as diffusers reads it, JSON: keys begin with the network's name."""
    config = student.net.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])  # a set has another order in every process
    return json.dumps({f"{student.network}.{key}": value for key, value in config.items()}, sort_keys=True)
