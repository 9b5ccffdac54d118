"""Random access to recorded estimates: images and latents in uncompressed tars.

Memory holds offsets and sizes only, about 20 bytes per entry; a batch reads and decodes its own
entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttsnap.files import reading as files
from ttsnap.files.settings import Json
from ttsnap.files.writing import sha256, write_text
from ttsnap.recordings.folder import IMAGES, load_shards
from ttsnap.recordings.header import Header
from ttsnap.recordings.shards import NAME, Shard

EXTENSIONS = {"pixels": "png", "latents": "latent.npy"}
"""The extension of each space's entries."""
FLAGS = {"pixels": "images", "latents": "latents"}
"""The flag of `ttsnap record` that stores each space."""


class FrameAt(NamedTuple):
    """A recorded estimate: positions of its prompt and its seed, and the step."""

    prompt: int
    seed: int
    step: int


_PLACE = np.dtype([("file", np.int32), ("offset", np.int64), ("size", np.int64)])
"""Where an entry lies: number of the file, first byte, bytes. File -1 stands for no entry."""


@dataclass
class _Part:
    """One recording: its header, its files, and by extension where the entries lie, (P, S, K+1)."""

    folder: Path
    header: Header
    shards: list[Shard]
    places: dict[str, NDArray[np.void]] = field(default_factory=dict)


class Frames:
    """The estimates of one or more recordings with the same noise levels, whose prompts are joined.

    prompts: (P,) texts.
    seeds: (P,), how many each prompt has.
    levels: (K+1,) noise levels.
    steps: those that all recordings scored, without the last one, K.
    identity: digest of prompts, seeds, levels and the files' SHA-256, independent of the folders.

    Args:
        folders: of the recordings.
        verified: file that remembers which tars match their SHA-256, so that each is read once.
        check: whether tars are held against their SHA-256; another process may do it.
        cache: bytes of entries to keep in memory.

    Raises:
        ValueError: for no recording, for one that is unfinished, damaged, or without images and
            latents, and for different levels.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        verified: Path | None = None,
        check: bool = True,
        cache: int = 0,
    ) -> None:
        if not folders:
            raise ValueError(
                "there are no recordings to read; give at least one folder of ttsnap record"
                " --images or --latents"
            )
        for folder in map(Path, folders):
            if not folder.is_dir():
                raise ValueError(
                    f"no such recording: {folder}; one with images or latents is a folder"
                )
        self._parts = [_Part(Path(folder), *load_shards(folder)) for folder in folders]
        first = self._parts[0].header
        for part in self._parts[1:]:
            if part.header.levels != first.levels:
                raise ValueError(
                    f"{part.folder} has other noise levels than {self._parts[0].folder}; join"
                    " recordings of the same model, sampler and number of steps"
                    f" ({len(part.header.levels)} levels and {len(first.levels)})"
                )
        if check:
            _verify(self._parts, verified)
        for part in self._parts:
            _index(part)
        self.prompts = tuple(prompt for part in self._parts for prompt in part.header.prompts)
        self.seeds = np.array(
            [part.header.seeds for part in self._parts for _ in part.header.prompts]
        )
        self.levels = first.levels
        self.last = len(first.levels) - 1
        common = set.intersection(*(set(part.header.steps) for part in self._parts))
        self.steps = tuple(sorted(common - {self.last}))
        of = [(part.header, [shard.sha256 for shard in part.shards]) for part in self._parts]
        about = [
            [h.prompts, h.seeds, h.first_seed, h.levels, h.steps, digests] for h, digests in of
        ]
        self.identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.info = [dict(p.header.info) for p in self._parts]
        self._where = [(p, i) for p in self._parts for i in range(len(p.header.prompts))]
        self._cache: dict[tuple[FrameAt, str], bytes] = {}
        self._left = cache

    def select(
        self, steps: Sequence[int] | None = None, levels: Sequence[float] | None = None
    ) -> tuple[int, ...]:
        """Recorded steps, rising, from step numbers or noise levels; all by default.

        ValueError, with what was recorded, for others.
        """
        if levels is not None:
            steps = [self._step_of(level) for level in levels]
        chosen = self.steps if steps is None else tuple(sorted(set(steps)))
        if missing := set(chosen) - set(self.steps):
            raise ValueError(
                f"step {min(missing)} was not recorded; these were: {list(self.steps)}"
            )
        if not chosen:
            raise ValueError(
                "the recordings hold no estimate before the final image; record with --score-steps"
            )
        return chosen

    def _step_of(self, level: float) -> int:
        near = [step for step in self.steps if abs(self.levels[step] - level) <= 5e-4]
        if not near:
            there = ", ".join(f"{self.levels[step]:.3f}" for step in self.steps)
            raise ValueError(f"level {level} was not recorded; these were: {there}")
        return min(near, key=lambda step: abs(self.levels[step] - level))

    def check_stored(self, space: str, steps: Sequence[int]) -> None:
        """ValueError unless every estimate at these steps is stored in this space."""
        extension = EXTENSIONS[space]
        for part in self._parts:
            places = part.places.get(extension)
            if places is None:
                raise ValueError(
                    f"{part.folder} holds no {space}; record into another folder with"
                    f" --{FLAGS[space]}"
                )
            missing = np.argwhere(places["file"][:, :, list(steps)] < 0)
            if len(missing):
                p, s, k = missing[0]
                raise ValueError(
                    f"{part.folder} is damaged: it lacks the {space} of prompt {p}"
                    f" ({part.header.prompts[p]!r}), seed {part.header.first(p) + s}, step"
                    f" {list(steps)[k]}, and {len(missing) - 1} others"
                )

    def seed(self, entry: FrameAt) -> int:
        """The seed of an entry, by which its noise is drawn."""
        part, row = self._where[entry.prompt]
        return part.header.first(row) + entry.seed

    def named(self, entry: FrameAt) -> str:
        """The prompt and the seed of an entry, for messages."""
        return f"prompt {self.prompts[entry.prompt]!r}, seed {self.seed(entry)}"

    def read(self, entry: FrameAt, extension: str) -> bytes:
        """The bytes of an entry, from memory or from its tar."""
        part, row = self._where[entry.prompt]
        if (entry, extension) in self._cache:
            return self._cache[entry, extension]
        number, offset, size = part.places[extension][row, entry.seed, entry.step].tolist()
        path = part.folder / IMAGES / part.shards[number].name
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            data: bytes = file.read(size)
        if len(data) != size:
            raise ValueError(
                f"the images {path} were cut off while they were in use; restore the file"
            )
        if size <= self._left:
            self._cache[entry, extension] = data
            self._left -= size
        return data

    def load(self, entries: Sequence[FrameAt], space: str) -> Tensor:
        """(N, ...) float32: pixels (N, 3, H, W) in [0, 1], latents (N, C, h, w)."""
        rows = [decode(self.read(entry, EXTENSIONS[space]), space) for entry in entries]
        shapes = {tuple(row.shape) for row in rows}
        if len(shapes) > 1:
            raise ValueError(
                f"the recordings hold {space} of different shapes {sorted(shapes)}; train on one"
                " size"
            )
        return torch.stack(rows)


def decode(data: bytes, space: str) -> Tensor:
    """One entry's bytes -> float32."""
    if space == "pixels":
        pixels = torch.from_numpy(files.picture_pixels(data, "a recorded image"))
        return pixels.permute(2, 0, 1).float() / 255
    with files.foreign(f"cannot read recorded {space}"):
        return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32))


def _verify(parts: Sequence[_Part], verified: Path | None) -> None:
    """ValueError unless every tar has its recorded size and SHA-256. Tars that `verified` knows are
    not read again."""
    known: dict[str, Json] = {}
    if verified is not None and verified.is_file():
        with contextlib.suppress(ValueError):
            known = files.read_object(verified)
    before = dict(known)
    for part in parts:
        for shard in part.shards:
            path = part.folder / IMAGES / shard.name
            if not path.is_file():
                raise ValueError(
                    f"the images {path} are missing; record again, or restore the file"
                )
            stat = path.stat()
            mark: Json = [stat.st_size, stat.st_mtime_ns, shard.sha256]
            if known.get(str(path.resolve())) == mark:
                continue
            if stat.st_size != shard.size or sha256(path) != shard.sha256:
                raise ValueError(
                    f"the images {path} are damaged: size or SHA-256 differ from what was written"
                )
            known[str(path.resolve())] = mark
    if verified is not None and known != before:
        write_text(verified, json.dumps(known))


def _index(part: _Part) -> None:
    """Fill in `places`."""
    header = part.header
    shape = (len(header.prompts), header.seeds, len(header.levels))
    for number, shard in enumerate(part.shards):
        path = part.folder / IMAGES / shard.name
        for name, offset, size in _entries(path):
            match = NAME.fullmatch(name)
            prompt, seed, step = map(int, match.groups()[:3]) if match else (-1, -1, -1)
            at = (prompt, seed - header.first(prompt), step)
            if match is None or not all(0 <= i < n for i, n in zip(at, shape, strict=True)):
                raise ValueError(f"{path} holds {name!r}, which is no name of a recorded estimate")
            if match[4] not in part.places:
                part.places[match[4]] = np.full(shape, np.array((-1, 0, 0), _PLACE))
            part.places[match[4]][at] = number, offset, size


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, bytes) of each file in an uncompressed tar; tarfile takes ten times as
    long."""
    at = 0
    end = path.stat().st_size
    with path.open("rb", buffering=2**15) as file:  # many small entries come in one read
        while at + 512 <= end:
            file.seek(at)
            head = file.read(512)
            if not any(head):
                return
            try:
                size = int(head[124:136].rstrip(b" \0") or b"0", 8)
                name = head[:100].rstrip(b"\0").decode()
                # another size would loop for ever, or fill the memory
                if not 0 <= size <= files.PICTURE_BYTES:
                    raise ValueError(size)
            except ValueError:
                raise ValueError(
                    f"the images {path} are damaged: no tar entry at byte {at}"
                ) from None
            yield name, at + 512, size
            at += 512 + (size + 511) // 512 * 512
