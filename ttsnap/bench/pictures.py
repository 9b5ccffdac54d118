"""The pictures that entries of a prompt set name: files beside the set, which anyone may have written.

An entry names them as a pipeline's call does, `image`, `mask_image` and `control_image`; `input_image` is GEdit-Bench's
word for the first (stepfun-ai/GEdit-Bench, looked up in November 2026).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ttsnap.bench.prompts import Prompt
from ttsnap.files.pictured import Picture, Pictured
from ttsnap.files.typed import Json

NAMES = {"image": ("image", "input_image"), "mask_image": ("mask_image", "mask"), "control_image": ("control_image",)}
"""Under which of these an entry names the picture for an argument of the call; the first that there is counts."""
MOST = 16
"""Pictures of one prompt, where a model takes several."""


def pictured(prompt: Prompt, folder: Path) -> str:
    """What is searched for: the prompt's text, with the pictures that its entry names, from files inside of a folder.

    ValueError that says which entry, for a name that is none or leads out of the folder, and a file that is no picture.
    """
    own: dict[str, object] = {}
    for argument, words in NAMES.items():
        named = next((value for word in words if (value := prompt.metadata.get(word)) is not None), None)
        if named is None:
            continue
        names = named if isinstance(named, list) else [named]
        if not 0 < len(names) <= MOST:
            raise ValueError(f"{_where(prompt, argument)} names {len(names)} pictures; 1 to {MOST} are taken")
        mask = argument == "mask_image"
        read = [Picture.read(_inside(folder, name, _where(prompt, argument)), mask=mask) for name in names]
        own[argument] = read if isinstance(named, list) else read[0]
    return Pictured(prompt.text, own) if own else prompt.text


def _where(prompt: Prompt, argument: str) -> str:
    return f"{argument} of entry {prompt.index + 1} of the prompt set"


def _inside(folder: Path, name: Json, where: str) -> Path:
    """The file of this name in a folder. ValueError for one outside of it, also by way of a link."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} must be the name of a file, got {str(name)[:60]!r}")
    path = folder / name
    way_out = ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(folder.resolve())
    if way_out:
        raise ValueError(f"{where} is {name[:60]!r}, which leads out of {folder}; put the pictures beside the set")
    return path
