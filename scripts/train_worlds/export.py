"""Trained parts as a stock `StableDiffusion3Pipeline`: its folder, its accuracy, and the packaged
folder's place."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from train_worlds.pack import eight_bits, pack
from ttsnap.pipelines.model_defaults import DEFAULTS_FILE

_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_PARTS = (*_TEXT, "transformer", "vae")


def finish(
    pipe: Any,
    out: Path,
    defaults: Mapping[str, Any],
    said: Callable[[], str] | None,
    install: Path | None,
    coarse: Collection[str] = (),
) -> None:
    """Write the pipeline to out/pipeline, and what is said of it to out/accuracy.md.

    Args:
        pipe: the stock pipeline.
        out: folder of the training.
        defaults: of searches: arguments of the call, a reward.
        said: makes a table of its accuracy; None for none.
        install: a packaged folder, in whose place a copy is put.
        coarse: parts that are stored in eight bits.
    """
    folder = out / "pipeline"
    export(pipe, folder, defaults, coarse)
    if said is not None:
        table = said()
        (out / "accuracy.md").write_text(table + "\n")
        print(table, flush=True)
    if install is not None:
        copied = install.with_name(f"{install.name}.new")
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        card = install / "README.md"
        if card.exists():
            shutil.copy(card, copied)
        swap_in(copied, install)


def export(
    pipe: Any, folder: Path, defaults: Mapping[str, Any], coarse: Collection[str] = ()
) -> None:
    """Write the pipeline with weights as a wheel packs them and configs that load as fp32; the
    folder is swapped in whole.

    `defaults` of searches go to `ttsnap.json`, which stock diffusers ignores.
    """
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    small: Any = StableDiffusion3Pipeline(
        **{
            name: copy.deepcopy(part).half() if name in _PARTS else part
            for name, part in pipe.components.items()
            if name not in ("image_encoder", "feature_extractor")
        }
    )
    small.save_pretrained(temporary, safe_serialization=True)
    for name in _PARTS:
        pack(temporary / name, *([eight_bits] if name in coarse else []))
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)
    fast = [n for n in _TOKENIZERS if not isinstance(pipe.components[n], CLIPTokenizer)]
    _edit(
        temporary / "model_index.json",
        {name: ["transformers", "PreTrainedTokenizerFast"] for name in fast},
    )
    for name in _PARTS:  # transformers loads in the dtype that the config names
        _edit(temporary / name / "config.json", {"dtype": "float32"} if name in _TEXT else {})
    (temporary / DEFAULTS_FILE).write_text(json.dumps(defaults, indent=2) + "\n")
    swap_in(temporary, folder)


def _edit(path: Path, changes: dict[str, Any]) -> None:
    """Set keys of a JSON file; what names the machine or another dtype goes."""
    kept = {
        k: v
        for k, v in json.loads(path.read_text()).items()
        if k not in ("_name_or_path", "torch_dtype")
    }
    path.write_text(json.dumps(kept | changes, indent=2, sort_keys=True) + "\n")


def swap_in(new: Path, folder: Path) -> None:
    """Put folder `new` in the place of `folder`."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
