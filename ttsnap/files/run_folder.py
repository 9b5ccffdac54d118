"""Folders of work that is gone on with after any interruption: a manifest, units, and a lock.

The manifest holds the settings and is written first. A unit, a file or a folder, is there whole or
not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ttsnap.files.reading import read_object
from ttsnap.files.settings import Json, build, plain
from ttsnap.files.writing import LOCK, as_json, locked, part_of, sync_names, write_text

S = TypeVar("S")
PROBE = bytes(2**16)
"""Written to a folder and removed as a test: a full disk lets files be made, but not filled."""
MOST_DIFFERENCES = 4
"""Differences of settings that a message names."""


@dataclass(frozen=True)
class RunFolder:
    """A folder of work for one writing process at a time.

    Work is gone on with under the settings that it was begun with. Until something but the manifest
    is there, the settings may be others.
    """

    path: Path
    manifest: str
    """The name of the file of settings."""
    what: str
    """The work in a word, as "recording", for messages."""
    differing: Callable[[], list[str]]
    """How the settings in the manifest differ from those asked for, in words."""
    text: str = ""
    """The manifest, as it is written."""

    def check(self) -> None:
        """ValueError where the folder holds other files, links to elsewhere, or work with other
        settings; and where nobody may write to it."""
        require_writable(self.path)
        others = self._others()
        if not others:
            return
        if not (self.path / self.manifest).exists():
            names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise ValueError(f"{self.path} holds other files ({names}); choose another folder")
        _refuse_links(self.path)
        if differences := self.differing():
            raise ValueError(
                f"{self.path} holds a {self.what} with other settings:"
                f" {'; '.join(differences[:MOST_DIFFERENCES])}; ask for the same ones to resume it, or choose"
                " another folder"
            )

    @contextlib.contextmanager
    def opened(self, *, renew: bool = True) -> Iterator[None]:
        """Begin or resume. A block that leaves nothing in the folder leaves no manifest either.

        renew: whether a manifest is written anew where work is resumed. ValueError as of `check`,
        and where another process is at work there.
        """
        with held(self.path, self.check):
            if renew or not self._others():
                write_text(self.path / self.manifest, self.text)
            try:
                yield
            finally:
                if not self._others():
                    (self.path / self.manifest).unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """The names of all but the manifest and the lock."""
        if not self.path.is_dir():
            return []
        own = {LOCK, self.manifest, part_of(self.path / self.manifest).name}
        return sorted(path.name for path in self.path.iterdir() if path.name not in own)


def json_folder(path: Path, manifest: str, what: str, settings: Mapping[str, Json]) -> RunFolder:
    """A folder whose manifest is these settings as JSON."""

    def differing() -> list[str]:
        return differences(read_object(path / manifest), plain(settings))

    return RunFolder(path, manifest, what, differing, as_json(settings))


@contextlib.contextmanager
def held(folder: Path, check: Callable[[], object]) -> Iterator[None]:
    """A folder that other processes are kept out of, made where it is missing, and tried by a
    write. What was made and is empty at the end is removed.

    check: raises where work may not begin there. It is asked again once the folder is locked, as
    another process may have been there just before. ValueError where one is still there.
    """
    check()
    folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with locked(folder):
            probe(folder)
            check()
            yield
    finally:
        for each in folders:
            with contextlib.suppress(OSError):  # it holds something, or is gone
                each.rmdir()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which replaces `folder` at the end; where writing fails,
    `folder` stays."""
    temporary = part_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync_names(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """ValueError unless a folder is there, or can be made, and may be written to."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"cannot write to {folder}: {there} is not a folder that you may write to")


def probe(folder: Path) -> None:
    """OSError where a file cannot be written to this folder."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(PROBE)
        file.flush()
        os.fsync(file.fileno())


def read_unit(cls: type[S], path: Path, again: str) -> S:
    """A unit that is a dataclass in a JSON file. ValueError, which names the file, for damage.

    again: what happens where the file is removed, as "the image is made again".
    """
    data = read_object(path)
    try:
        return build(cls, data)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it, and {again}") from None


def digest(settings: Mapping[str, Json]) -> str:
    """SHA-256 of settings, in hexadecimal, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(there: object, wanted: object, name: str = "") -> list[str]:
    """What differs between two JSON values, each named by its key ("info.call.guidance_scale is
    4.0, not 5.0")."""
    if there == wanted:
        return []
    if isinstance(there, dict) and isinstance(wanted, dict):
        differing = []
        for key in {**there, **wanted}:
            path = f"{name}.{key}" if name else str(key)
            differing += differences(there.get(key), wanted.get(key), path)
        return differing
    if isinstance(there, list) and isinstance(wanted, list):
        if len(there) != len(wanted):
            return [f"{name} has {len(there)} entries, not {len(wanted)}"]
        at = next(i for i, (a, b) in enumerate(zip(there, wanted, strict=True)) if a != b)
        return differences(there[at], wanted[at], f"{name}[{at}]")
    return [f"{name} is {_short(there)}, not {_short(wanted)}"]


def _short(value: object, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def _refuse_links(folder: Path) -> None:
    """ValueError for a link to another folder inside this one."""
    for path, inside, _ in os.walk(folder):
        for link in (Path(path, name) for name in inside if Path(path, name).is_symlink()):
            raise ValueError(
                f"{link} is a link to another folder, which would be written to; remove it"
            )
