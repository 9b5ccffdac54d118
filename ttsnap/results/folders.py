"""Folders for results: checked, made and tried before anything is computed."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ttsnap.files.writing import LOCK, locked, part_of

PROBE = bytes(2**16)
"""Written to a folder and removed as a test: a full disk lets files be made, but not filled."""


def check_free(out: Path, overwrite: bool) -> None:
    """ValueError where `out` is no folder, holds files already (unless `overwrite`), or cannot be
    written to."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    if out.is_dir() and not overwrite and any(path.name != LOCK for path in out.iterdir()):
        raise ValueError(
            f"{out} holds files already; choose another --out, or pass --overwrite to replace them"
        )
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"cannot write to {out}: {there} is not a folder that you may write to")


def check_same(folder: Path, about: str, differing: Callable[[], list[str]], what: str) -> None:
    """ValueError unless work may begin in `folder`, or resume there with the settings that it was
    begun with; and for links to folders elsewhere.

    about: the name of the file that holds those settings, the first one written there. differing:
    the differences from the present settings in words; called only where the file exists. what:
    "recording", for messages.
    """
    check_free(folder, overwrite=True)
    if (folder / about).exists():
        for path, inside, _ in os.walk(folder):
            for link in (Path(path, name) for name in inside if Path(path, name).is_symlink()):
                raise ValueError(
                    f"{link} is a link to another folder, which would be written to; remove it"
                )
        if differences := differing():
            raise ValueError(
                f"{folder} holds a {what} with other settings: {'; '.join(differences[:4])}; "
                "ask for the same ones to resume it, or choose another folder"
            )
    elif folder.is_dir():
        others = sorted(
            p.name for p in folder.iterdir() if p not in (folder / LOCK, part_of(folder / about))
        )
        if others:
            names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise ValueError(f"{folder} holds other files ({names}); choose another folder")


@contextlib.contextmanager
def reserved(out: Path | None, name: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, made and locked: `out`, or the next free outputs/NNNN-name.

    name: of its contents, as a prompt. A folder that is empty at the end is removed, with those
    that were made around it. ValueError at once for a folder that holds files (unless `overwrite`),
    is locked, or cannot be written to.
    """
    if out is not None:
        check_free(out, overwrite)
    made: list[Path] = []
    with contextlib.ExitStack() as held:
        held.callback(_remove_empty, made)
        try:
            folder = _numbered(name, made) if out is None else _make(out, made)
            held.enter_context(locked(folder))
            _probe(folder)
        except OSError as error:
            where = "outputs" if out is None else out
            raise ValueError(
                f"cannot write to {where}: {error.strerror or error}; choose another --out"
            ) from error
        # again: another process may have been there before the lock was taken
        check_free(folder, overwrite)
        yield folder


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
    try:
        _probe(out.parent)
    except OSError as error:
        raise ValueError(
            f"cannot write to {out.parent}: {error.strerror or error}; choose another --out"
        ) from error
    return out


def slug(text: str, most: int = 40) -> str:
    """The beginning of a prompt as a safe file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:most].strip("-") or "prompt"


def _numbered(name: str, made: list[Path]) -> Path:
    """Make the next free outputs/NNNN-name; the process that makes a folder has it."""
    while True:
        root = _make(Path("outputs"), made)
        taken = [
            int(match.group(1))
            for path in root.iterdir()
            if (match := re.match(r"(\d+)-", path.name))
        ]
        folder = root / f"{max(taken, default=0) + 1:04d}-{slug(name)}"
        try:
            folder.mkdir(exist_ok=False)
        except FileExistsError:
            continue
        made.append(folder)
        return folder


def _make(folder: Path, made: list[Path]) -> Path:
    """Make a folder and its missing parents; `made` gets the new ones, outermost first."""
    made += reversed([path for path in (folder, *folder.parents) if not path.exists()])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remove_empty(made: list[Path]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # it holds something, or is gone
            folder.rmdir()


def _probe(folder: Path) -> None:
    """OSError where a file cannot be written to this folder."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(PROBE)
        file.flush()
        os.fsync(file.fileno())
