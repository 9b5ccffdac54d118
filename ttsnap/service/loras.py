"""LoRAs that clients choose by name: those in the operator's folder, and those that are loaded."""

from __future__ import annotations

import gc
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ttsnap.pipelines.lora import UnderLora, lora_networks, numbers_in, rescaled, under_lora
from ttsnap.request.request import Lora
from ttsnap.service.limits import RequestError

logger = logging.getLogger(__name__)
SUFFIX, USUAL = ".safetensors", "pytorch_lora_weights.safetensors"
"""How the names of files end; that of diffusers' own file in a folder."""
MOST_IDLE = 16
"""Most twins without an engine that are kept: each has modules of its own."""
BUSY = "loras_busy"
"""The code of an error that goes by itself, as soon as other searches end."""


class LoraFolder:
    """The LoRAs in a folder: NAME.safetensors, or a folder NAME with such a file. It is looked up
    at every request.

    A file that is damaged, or not whole yet, is no LoRA; the log says so once. Names come from the
    folder, so that what a client writes is never part of a path.
    """

    def __init__(self, folder: Path) -> None:
        """ValueError where there is no such folder."""
        if not folder.is_dir():
            raise ValueError(
                f"--loras {folder}: there is no such folder; give one that holds NAME{SUFFIX}"
            )
        self.folder = folder
        self._read: dict[Path, tuple[tuple[int, ...], int | None]] = {}
        """What was last read of each file: its version, and how many numbers it holds, None for no
        LoRA."""

    def __call__(self) -> dict[str, Lora]:
        """By name, as they are now."""
        try:
            files = {
                path.name.removesuffix(SUFFIX): _file(path)
                for path in sorted(self.folder.iterdir())
            }
        except OSError as error:
            logger.error("the folder of LoRAs cannot be read: %s", error)
            files = {}
        found = {name: self._lora(name, path) for name, path in files.items() if path is not None}
        self._read = {path: read for path, read in self._read.items() if path in files.values()}
        return {name: lora for name, lora in found.items() if lora is not None}

    def _lora(self, name: str, path: Path) -> Lora | None:
        version: tuple[int, ...]
        try:
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._read.get(path, ((),))[0] != version:
                self._read[path] = version, None
                self._read[path] = version, numbers_in(path)
        except (OSError, ValueError) as error:
            logger.warning("%s is not offered as a LoRA: %s", name, error)
        version, size = self._read.get(path, ((), None))
        return None if size is None else Lora(name, str(path), version, size)


def _file(path: Path) -> Path | None:
    """The file of the LoRA at a path, if there is one."""
    if path.name.startswith(".") or not path.name.isprintable():
        return None
    if not path.is_dir():
        # a pipe would be waited for
        return path if path.suffix == SUFFIX and path.is_file() else None
    inside = [each for each in path.glob(f"*{SUFFIX}") if each.is_file()]
    return path / USUAL if path / USUAL in inside else inside[0] if len(inside) == 1 else None


@dataclass(eq=False)
class _Twin:
    """A pipeline under LoRAs, and how many engines run on it."""

    under: UnderLora
    users: int = 0


@dataclass(eq=False)
class _Load:
    """What another thread is doing, and for whom."""

    wanted: tuple[Lora, ...]
    """By a request; of several LoRAs, the first ones are loaded first."""
    loras: tuple[Lora, ...]
    before: int
    """Weights of LoRAs under the twin that the new one is made of."""
    made: Future[UnderLora]


class LoadedLoras:
    """Twins of a pipeline under LoRAs, which share its weights. Those that were used least lately
    go first.

    A thread of its own makes them, one at a time, since to read a large file takes seconds, in
    which searches go on. What an engine uses stays as it is, whatever becomes of the file. All
    methods are called in one thread.
    """

    def __init__(self, pipe: Any, mib: int) -> None:
        """mib: MiB that the weights of LoRAs may take."""
        self.pipe, self.most = pipe, mib * 2**20
        self._twins: OrderedDict[tuple[Lora, ...], _Twin] = OrderedDict()
        self._refused: dict[tuple[str, tuple[int, ...]], str] = {}
        """Files that do not fit the model, with what clients are told."""
        self._load: _Load | None = None
        self._loader = ThreadPoolExecutor(1, "loras")
        self.counts: Counter[str] = Counter()
        """How often LoRAs were loaded and evicted, since `taken`."""

    @property
    def bytes(self) -> int:
        """That all of them take. Twins may share the weights of a LoRA."""
        own: dict[int, nn.Parameter] = {
            id(p): p for twin in self._twins.values() for p in twin.under.own.values()
        }
        return sum(parameter.nbytes for parameter in own.values())

    @property
    def loading(self) -> bool:
        """Whether nothing changes until one is loaded."""
        return self._load is not None and not self._load.made.done()

    def taken(self) -> dict[str, int]:
        """What `counts` has counted, which begins at 0 again."""
        counts, self.counts = self.counts, Counter()
        return dict(counts)

    @contextmanager
    def under(self, loras: tuple[Lora, ...]) -> Iterator[Any]:
        """The pipeline under these LoRAs, until the block ends; for none the pipeline itself. Waits
        until they are `ready`, and raises what that does."""
        while not self.ready(loras):
            assert self._load is not None
            wait([self._load.made])
        if not loras:
            yield self.pipe
            return
        self._twins.move_to_end(loras)
        twin = self._twins[loras]
        twin.users += 1
        try:
            yield twin.under.pipe
        finally:
            twin.users -= 1

    def ready(self, loras: tuple[Lora, ...], then: Callable[[], None] = lambda: None) -> bool:
        """Whether these LoRAs are loaded. Else a file is being read, after which `then` is called
        in another thread.

        RequestError for LoRAs that do not fit the model, or are too large together, and (503) where
        others that are in use leave no room.
        """
        if self._load is not None and not self.loading:
            self._take_in(loras)
        there = not loras or loras in self._twins
        if not there and self._load is None:
            self._load = self._begin(loras, loras)
            self._load.made.add_done_callback(lambda _: then())
        return there

    def _take_in(self, loras: tuple[Lora, ...]) -> None:
        """Keep what was loaded. The error of a load is raised for those that wanted it."""
        load, self._load = self._load, None
        assert load is not None
        try:
            under = load.made.result()
        except Exception as error:
            lora = load.loras[-1]
            # it names the operator's file
            logger.warning("the LoRA %s cannot be used", lora.name, exc_info=error)
            if isinstance(error, ValueError):
                said = f"the LoRA {lora.name} does not fit this model; was it made for another one?"
                self._refused[lora.path, lora.version] = said
            elif load.wanted == loras:
                raise
            return
        if len(under.own) > load.before:
            self.counts["loaded"] += 1
            alike = next(
                (twin.under for twin in self._twins.values() if under.costs_as(twin.under)), None
            )
            if alike is not None:  # to count FLOPs takes longer than to load
                under.learn(alike, lora_networks(self.pipe))
        self._twins[load.loras] = _Twin(under)

    def _begin(self, loras: tuple[Lora, ...], wanted: tuple[Lora, ...]) -> _Load:
        """Begin to make a twin: over the weights of one with other scales, or of one that is under
        all but the last."""
        for lora in loras:
            if refusal := self._refused.get((lora.path, lora.version)):
                raise RequestError(400, refusal, "lora", "invalid_value")
        networks = lora_networks(self.pipe)
        twin = next(
            (twin for other, twin in self._twins.items() if _files(other) == _files(loras)), None
        )
        if twin is not None:
            self._make_room(0)
            scales = {_adapter(i): lora.scale for i, lora in enumerate(loras)}
            make = partial(rescaled, twin.under, networks, scales)
        else:
            item = getattr(self.pipe, networks[0]).dtype.itemsize
            if (whole := sum(lora.size for lora in loras) * item) > self.most:
                most = f"LoRAs take at most {self.most / 2**20:.0f} MiB together here"
                said = f"{most}, and {', '.join(map(str, loras))} {whole / 2**20:.0f} MiB"
                raise RequestError(400, said, "lora", "invalid_value")
            *first, lora = loras
            if first and tuple(first) not in self._twins:
                return self._begin(tuple(first), wanted)
            twin = self._twins[tuple(first)] if first else _Twin(UnderLora(self.pipe, {}))
            twin.users += 1
            try:
                self._make_room(lora.size * item)
            finally:
                twin.users -= 1
            make = partial(_loaded, twin.under, networks, lora, _adapter(len(first)))
        return _Load(wanted, loras, len(twin.under.own), self._loader.submit(make))

    def _make_room(self, needed: int) -> None:
        """Let idle ones go until a twin with so many bytes more has room. RequestError where it has
        none."""
        idle = [loras for loras, twin in self._twins.items() if not twin.users]
        while idle and (len(idle) >= MOST_IDLE or self.bytes + needed > self.most):
            held = self.bytes
            del self._twins[idle.pop(0)]
            if self.bytes < held:
                self.counts["evicted"] += 1
                gc.collect()  # engines that are closed refer to themselves, and hold the weights
        if self.bytes + needed > self.most:
            said = (
                "searches with other LoRAs take all the memory that there is for them; try again"
                " later"
            )
            raise RequestError(503, said, "lora", BUSY, retry_after=5)


def _loaded(before: UnderLora, networks: list[str], lora: Lora, adapter: str) -> UnderLora:
    """A twin under one more LoRA, whose weights it shares with no other."""
    under = under_lora(before.pipe, networks, lora.path, adapter, lora.name, lora.scale)
    return UnderLora(under.pipe, {**before.own, **under.own})


def _files(loras: tuple[Lora, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(lora.path, lora.version) for lora in loras]


def _adapter(place: int) -> str:
    """The name of an adapter: those of files may have dots, which peft takes for modules."""
    return f"request_{place}"
