"""Checkpoints, each a folder that is written whole or not at all; the last two are kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from ttsnap.files import reading as files
from ttsnap.files.run_folder import differences, whole_folder
from ttsnap.files.settings import Json, check, plain
from ttsnap.files.writing import as_json, sha256

KEPT = 2
ABOUT = "state.json"
logger = logging.getLogger(__name__)


def save(
    folder: Path, step: int, write: Callable[[Path], object], about: Mapping[str, Json]
) -> Path:
    """Write the state after `step` optimiser steps to folder/{step:08d}, and remove all but this
    one and the one before.

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
        state: dict[str, Json] = {"step": step, "files": digests, "about": plain(about)}
        (temporary / ABOUT).write_text(as_json(state))
    there = _all(folder)
    kept = [path for path in there if path <= target][-KEPT:]
    # later ones are damaged, as this run did not begin with them
    for other in set(there) - set(kept):
        shutil.rmtree(other, ignore_errors=True)
    return target


def latest(folder: Path, about: Mapping[str, Json]) -> tuple[int, Path] | None:
    """(step, folder of its files) of the last checkpoint that is not damaged; None without one.

    A damaged checkpoint is skipped with a warning. ValueError, which names the settings that
    differ, for a checkpoint whose settings are not those in `about`.
    """
    for path in reversed(_all(folder)):
        try:
            state = files.read_object(path / ABOUT)
            step = check("step", state["step"], int)
            there = state["about"]
            digests = check("files", state["files"], Mapping[str, str])
            if not digests or digests != {name: sha256(path / Path(name).name) for name in digests}:
                raise ValueError("its files are not those that were written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); resuming from the one before", path, error)
            continue
        if mismatches := differences(there, plain(about)):
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


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
