"""The pictures that entries of a prompt set name: files in the folder of the set, which anyone may
have written.

An entry names pictures as a pipeline's call does: `image`, `mask_image`, `control_image`.
`input_image` is the name in GEdit-Bench (stepfun-ai/GEdit-Bench, looked up in November 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from ttsnap.bench.prompts import PromptRecord
from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Json

NAMES = {
    "image": ("image", "input_image"),
    "mask_image": ("mask_image", "mask"),
    "control_image": ("control_image",),
}
"""Keys of an entry by argument of the call. The first key that is there counts."""
MOST = 16
"""Pictures of one prompt, where a model takes several."""
MOST_BYTES = 2**32
"""Bytes of all pictures of a set, which stay in memory as files."""


def pictured(entries: Sequence[PromptRecord], folder: Path) -> list[Prompt]:
    """Prompts of the entries' texts and pictures. A file that several entries name is read once.

    ValueError that names the entry, for a name that is none or leads out of the folder, a file that
    is no picture, and pictures of more than MOST_BYTES in all.
    """
    read: dict[tuple[Path, bool], Picture] = {}
    left = MOST_BYTES

    def picture(path: Path, where: str, mask: bool) -> Picture:
        nonlocal left
        if (path, mask) not in read:
            read[path, mask] = Picture.read(path, mask=mask)
            left -= len(read[path, mask].data)
            if left < 0:
                raise ValueError(
                    f"the pictures up to {where} have more than {MOST_BYTES:,} bytes; make several"
                    " sets"
                )
        return read[path, mask]

    return [_pictured(entry, folder, picture) for entry in entries]


def _pictured(
    entry: PromptRecord, folder: Path, picture: Callable[[Path, str, bool], Picture]
) -> Prompt:
    """The prompt of one entry. picture: reads a file, for the argument that messages name, as a
    mask or not."""
    own: dict[str, object] = {}
    for argument, words in NAMES.items():
        named = next(
            (value for word in words if (value := entry.metadata.get(word)) is not None), None
        )
        if named is None:
            continue
        names = named if isinstance(named, list) else [named]
        if not 0 < len(names) <= MOST:
            raise ValueError(
                f"{_where(entry, argument)} names {len(names)} pictures; 1 to {MOST} are taken"
            )
        where = _where(entry, argument)
        mask = argument == "mask_image"
        read = [picture(_inside(folder, name, where), where, mask) for name in names]
        own[argument] = read if isinstance(named, list) else read[0]
    return Prompt(entry.text, inputs=own)


def _where(entry: PromptRecord, argument: str) -> str:
    return f"{argument} of entry {entry.index + 1} of the prompt set"


def _inside(folder: Path, name: Json, where: str) -> Path:
    """The file of this name in a folder. ValueError for a file outside of it, also by a link."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} must be the name of a file, got {str(name)[:60]!r}")
    path = folder / name
    way_out = ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(
        folder.resolve()
    )
    if way_out:
        raise ValueError(
            f"{where} is {name[:60]!r}, which leads out of {folder}; put the pictures beside"
            " the set"
        )
    return path
