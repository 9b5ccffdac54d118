"""Put the trained parts together as a stock `StableDiffusion3Pipeline` and write its folder."""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from ttsnap.files.settings import to_json
from ttsnap.scenes.model import build_blank_t5, build_blank_tokenizer, build_scheduler
from ttsnap.scenes.training.base.generator import Generator
from ttsnap.scenes.training.base.recipe import Call
from ttsnap.scenes.training.parts import Pipeline, Vae
from ttsnap.scenes.weights_folder import DEFAULTS_FILE

_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_PARTS = (*_TEXT, "transformer", "vae")


def build_pipeline(model: Generator, vae: Vae, tokenizer: CLIPTokenizer, shift: float) -> Pipeline:
    """The stock pipeline around the given parts (not copied)."""
    pipe: Pipeline = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=build_scheduler(shift),
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokenizer,
        text_encoder_2=model.text_2,
        tokenizer_2=tokenizer,
        text_encoder_3=build_blank_t5(model.transformer.config.joint_attention_dim),
        tokenizer_3=build_blank_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(pipe: Pipeline, folder: Path, defaults: Call) -> None:
    """Write the pipeline with weights in half precision and configs that load as fp32; the folder is swapped in whole.

    `defaults` (recommended call arguments) go to `ttsnap.json`, which stock diffusers ignores.
    """
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    small: Pipeline = StableDiffusion3Pipeline(
        **{
            name: copy.deepcopy(part).half() if name in _PARTS else part
            for name, part in pipe.components.items()
            if name not in ("image_encoder", "feature_extractor")
        }
    )
    small.save_pretrained(temporary, safe_serialization=True)
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)
    index_path = temporary / "model_index.json"
    index = json.loads(index_path.read_text())
    index["tokenizer_3"] = ["transformers", "PreTrainedTokenizerFast"]
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for name in _PARTS:
        path = temporary / name / "config.json"
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if name in _TEXT:  # transformers loads in the dtype that the config names
            config.pop("torch_dtype", None)
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (temporary / DEFAULTS_FILE).write_text(json.dumps(to_json(defaults), indent=2) + "\n")
    swap_in(temporary, folder)


def swap_in(new: Path, folder: Path) -> None:
    """Put folder `new` in the place of `folder`."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def finished(model: Generator, tokenizer: CLIPTokenizer) -> Generator:
    """A copy as it will load: weights rounded to half precision, held in fp32, and 'one' taken for 'a'.

    (Training captions never say 'one'; it gets the embeddings of 'a'.)
    """
    model = copy.deepcopy(model).half().float()
    one, a = (tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("one", "a"))
    with torch.no_grad():
        for encoder in (model.text, model.text_2):
            table: torch.Tensor = encoder.text_model.embeddings.token_embedding.weight
            table[one] = table[a]
    return model
