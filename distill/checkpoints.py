"""Checkpoints, each a folder that is written whole or not at all; the last two are kept."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

from ttsnap.files import reading as files
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import part_of, sha256
from ttsnap.recordings.header import differences

KEPT = 2
ABOUT = "state.json"
logger = logging.getLogger(__name__)


def save(
    folder: Path, step: int, write: Callable[[Path], object], about: Mapping[str, Json]
) -> Path:
    """Write the state after `step` optimiser steps to folder/{step:08d}, and remove all but the
    last two.

    write: writes the files of the state into a folder. about: what must be the same to resume,
    JSON-ready. OSError where the disk is full; earlier checkpoints stay.
    """
    target = folder / f"{step:08d}"
    with whole_folder(target) as temporary:
        try:
            write(temporary)
        except (
            SafetensorError,
            RuntimeError,
        ) as error:  # how safetensors and torch report a full disk
            raise OSError(str(error)) from error
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        text = json.dumps({"step": step, "files": digests, "about": about}, indent=1)
        (temporary / ABOUT).write_text(text + "\n")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path, about: Mapping[str, Json]) -> tuple[int, Path] | None:
    """(step, folder of its files) of the last checkpoint that is not damaged; None without one.

    A damaged checkpoint is skipped with a warning. ValueError, which names the settings that
    differ, for a checkpoint whose settings are not those in `about`.
    """
    for path in reversed(_all(folder)):
        try:
            state = files.read_object(path / ABOUT)
            step, there = check("step", state["step"], int), state["about"]
            digests = check("files", state["files"], Mapping[str, str])
            if not digests or digests != {name: sha256(path / Path(name).name) for name in digests}:
                raise ValueError("its files are not those that were written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); resuming from the one before", path, error)
            continue
        mismatches = differences(there, json.loads(json.dumps(about)))
        if mismatches:
            raise ValueError(
                f"{path} is of a run with other settings: {'; '.join(mismatches[:4])}; use the same"
                " ones to resume it, or choose another folder"
            )
        return step, path
    return None


def steps_done(folder: Path) -> int:
    """The step of the last checkpoint by its name, 0 without one. For messages only, as it may be
    damaged."""
    there = _all(folder)
    return int(there[-1].name) if there else 0


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which replaces `folder` at the end; where writing fails,
    `folder` stays."""
    temporary = part_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
