"""Where weights come from: a local file or folder, or a hub id. safetensors, or pickles without code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign, reason

T = TypeVar("T")


def locate(name_or_path: str | Path, files: Sequence[str]) -> Path:
    """The path of a file of weights: `name_or_path` itself where it is a file, else the first of `files` that it holds.

    name_or_path: a file, a folder or the id of a hub repository. ValueError where it holds none of `files`.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        places, what = [path / name for name in files], f"folder {path}"
        found = next((place for place in places if place.is_file()), None)
    else:
        what = f"repository {name_or_path}"
        found = next(filter(None, (_downloaded(str(name_or_path), name) for name in files)), None)
    if found is None:
        raise ValueError(f"{what} holds none of {', '.join(files)}; give the file itself")
    return found


def _downloaded(repo: str, name: str) -> Path | None:
    """A file of a hub repository in the cache; None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(explained(lambda: hf_hub_download(repo, name), repo))
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return None
        raise


def beside(weights: Path, files: Sequence[str], other: str | Path) -> str:
    """The folder of weights (a file or a folder) where it holds one of `files`, such as a tokenizer's; else `other`."""
    folder = weights.parent if weights.is_file() else weights
    return str(folder if any((folder / name).is_file() for name in files) else other)


def pretrained(kind: Any, source: str, **options: Any) -> Any:
    """What a class of transformers loads from a folder or a hub id. ValueError where it cannot be loaded."""
    return explained(lambda: kind.from_pretrained(source, **options), source)


def explained(load: Callable[[], T], source: str) -> T:
    """What a library's `load` returns; its errors as a ValueError that names the source and says what else to give.

    All of them, as in ttsnap.files.reading.foreign: what is raised for damaged files is different with every library.
    """
    try:
        require_repository(source)
        return load()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot load {source!r}: {reason}; give a local folder or file, or the id of a hub repository that can "
            "be reached"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Of a checkpoint that wraps them in "state_dict" or "model", those. ValueError for others."""
    from safetensors.torch import load_file

    state: Any
    try:
        with foreign(f"{path} cannot be read as weights, is it whole?"):
            safe = path.suffix == ".safetensors"
            state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which could run code; convert it to safetensors: "
            f"{reason(error.__cause__)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold tensors by name; is it a checkpoint?")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, assign: bool = False) -> None:
    """Load `state` into every parameter and buffer of `module`.

    source: where the state comes from, for the message. assign: take the tensors themselves, with their dtype, instead
    of copying them, for modules on the meta device. ValueError where names or shapes are not those of the module.
    """
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape]
    if missing or extra or shapes:
        mismatches = [
            f"{len(names)} {what} (such as {names[0]})"
            for names, what in ((missing, "missing"), (extra, "unknown"), (sorted(shapes), "of another shape"))
            if names
        ]
        raise ValueError(f"the weights in {source} are for another model: {'; '.join(mismatches)}")
    module.load_state_dict(dict(state), assign=assign)
