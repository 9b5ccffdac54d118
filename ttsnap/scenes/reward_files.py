"""The learned reward's network on disk: config.json and model.safetensors (float16)."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from ttsnap.files.reading import foreign, read_object
from ttsnap.files.settings import Json, build

from .reader import ReaderSize, SceneReader

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def reward_path() -> Path:
    """The packaged learned reward."""
    return Path(__file__).parent / "reward"


def noise_aware_path() -> Path:
    """The packaged noise-aware reward."""
    return Path(__file__).parent / "noise_aware"


def save_reader(model: SceneReader, recipe: Mapping[str, Json], folder: Path) -> None:
    """Write config.json (the whole recipe, with the reader's size as "model") and model.safetensors."""
    (folder / CONFIG).write_text(json.dumps(recipe, indent=2) + "\n")
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def load_reader(folder: Path) -> SceneReader:
    """A float32 network in evaluation mode. ValueError where the files are missing, damaged or do not fit."""
    try:
        config = read_object(folder / CONFIG)
        model = SceneReader(build(ReaderSize, config["model"], "model."))
        with foreign(f"cannot read {folder / WEIGHTS}"):
            state = load_file(folder / WEIGHTS)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no learned reward of the embedded world: {error}") from error
    return model.eval()
