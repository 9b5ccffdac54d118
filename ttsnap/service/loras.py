"""LoRAs that clients choose by name: those in the operator's folder, read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ttsnap.files.reading import foreign
from ttsnap.pipelines.lora import UnderLora, lora_networks, under_lora, with_adapters
from ttsnap.request.request import Lora

SUFFIX, USUAL = ".safetensors", "pytorch_lora_weights.safetensors"
"""How the names of files end; that of diffusers' own file in a folder."""
MOST_TWINS = 16
"""Most twins that are kept: each has modules of its own."""


def loras_in(folder: Path) -> tuple[Lora, ...]:
    """The LoRAs in a folder: NAME.safetensors, or a folder NAME with such a file. ValueError where
    there is no such folder.

    Names come from the folder, so that what a client writes is never part of a path.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--loras {folder}: there is no such folder; give one that holds NAME{SUFFIX}"
        )
    with foreign(f"--loras {folder} cannot be read"):
        files = {path.name.removesuffix(SUFFIX): _file(path) for path in sorted(folder.iterdir())}
    return tuple(Lora(name, str(path)) for name, path in files.items() if path is not None)


def _file(path: Path) -> Path | None:
    """The file of the LoRA at a path, if there is one."""
    if path.name.startswith(".") or not path.name.isprintable():
        return None
    if not path.is_dir():
        # a pipe would be waited for
        return path if path.suffix == SUFFIX and path.is_file() else None
    inside = [each for each in path.glob(f"*{SUFFIX}") if each.is_file()]
    return path / USUAL if path / USUAL in inside else inside[0] if len(inside) == 1 else None


class LoadedLoras:
    """Twins of a pipeline, each under the LoRAs of some requests. All share the weights of the
    pipeline and those of the LoRAs, which are read here."""

    def __init__(self, pipe: Any, loras: Iterable[Lora] = ()) -> None:
        """ValueError for a LoRA that does not fit the model."""
        self.pipe = pipe
        self.offered = {lora.name: lora for lora in loras}
        """By the names that clients use."""
        self._networks = lora_networks(pipe) if self.offered else []
        self._all = UnderLora(pipe, {})
        for lora in self.offered.values():
            said = f"the LoRA {lora.name}"
            one = under_lora(self._all.pipe, self._networks, lora.path, self._adapter(lora), said)
            self._all = UnderLora(one.pipe, {**self._all.own, **one.own})
        self._twins: OrderedDict[tuple[Lora, ...], UnderLora] = OrderedDict()

    def _adapter(self, lora: Lora) -> str:
        """The name of its adapter: those of files may have dots, which peft takes for modules."""
        return f"request_{list(self.offered).index(lora.name)}"

    def under(self, loras: tuple[Lora, ...]) -> Any:
        """The pipeline under these LoRAs; for none the pipeline itself."""
        if not loras:
            return self.pipe
        if loras not in self._twins:
            scales = {self._adapter(lora): lora.scale for lora in loras}
            others = {self._adapter(lora) for lora in self.offered.values()} - scales.keys()
            twin = with_adapters(self._all, self._networks, scales, others)
            alike = next((each for each in self._twins.values() if twin.costs_as(each)), None)
            if alike is not None:  # to count FLOPs takes long
                twin.learn(alike, self._networks)
            if len(self._twins) == MOST_TWINS:
                self._twins.popitem(last=False)
            self._twins[loras] = twin
        self._twins.move_to_end(loras)
        return self._twins[loras].pipe
