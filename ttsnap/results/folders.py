"""Folders for results: checked, made and tried before anything is computed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ttsnap.files.run_folder import held, probe, require_writable
from ttsnap.files.writing import LOCK


def check_free(out: Path, overwrite: bool) -> None:
    """ValueError where `out` is no folder, holds files already (unless `overwrite`), or cannot be
    written to."""
    if not overwrite and out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise ValueError(
            f"{out} holds files already; choose another --out, or pass --overwrite to replace them"
        )
    require_writable(out)


@contextlib.contextmanager
def reserved(out: str | Path | None, name: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, made and locked: `out`, or the next free outputs/NNNN-name.

    name: of its contents, as a prompt. A folder that is empty at the end is removed, with those
    that were made around it. ValueError at once for a folder that holds files (unless `overwrite`),
    is locked, or cannot be written to.
    """
    with contextlib.ExitStack() as until_end:
        with refusing("outputs" if out is None else out):
            if out is None:
                folder = _next(name, until_end)
            else:
                folder = Path(out)
                until_end.enter_context(held(folder, partial(check_free, folder, overwrite)))
        yield folder


@contextlib.contextmanager
def refusing(where: str | Path) -> Iterator[None]:
    """What the system says of writing to a folder, as a ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {where}: {error.strerror or error}; choose another --out"
        ) from error


def new_file(path: str | Path, overwrite: bool) -> Path:
    """The path of a file that can be written. ValueError where it exists, or its folder does
    not."""
    out = Path(path)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give a file")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; choose another --out, or pass --overwrite")
    if not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} to")
    with refusing(out.parent):
        probe(out.parent)
    return out


def slug(text: str, most: int = 40) -> str:
    """The beginning of a prompt as a safe file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:most].strip("-") or "prompt"


def _next(name: str, until_end: contextlib.ExitStack) -> Path:
    """The next free outputs/NNNN-name, which the process that locks it first has until the end."""
    root = Path("outputs")
    require_writable(root)
    while True:
        names = [path.name for path in root.iterdir()] if root.exists() else []
        taken = [int(match[1]) for match in map(re.compile(r"(\d+)-").match, names) if match]
        folder = root / f"{max(taken, default=0) + 1:04d}-{slug(name)}"
        with contextlib.suppress(ValueError):  # another process was faster
            until_end.enter_context(held(folder, partial(check_free, folder, overwrite=False)))
            return folder
