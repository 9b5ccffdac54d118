"""Settings of a distillation: fields with their help, to and from YAML. No torch here: the command line reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_type_hints

from ttsnap.files.settings import Bounded, build, load_settings, save_settings, to_json
from ttsnap.files.typed import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def option(default: Any, text: str, *, determines: bool = True) -> Any:
    """A field with its help. determines: whether another value would give another result, so that a run refuses it."""
    return field(default=default, metadata={"help": text, "determines": determines})


def determining(settings: DataclassInstance) -> dict[str, Json]:
    """The keys of settings, or of a section of them, on which the result depends."""
    skipped = [f.name for f in dataclasses.fields(settings) if not f.metadata.get("determines", True)]
    return {key: value for key, value in to_json(settings).items() if key not in skipped}


class RunSettings(Bounded):
    """Base of the settings of a whole run. Subclasses are frozen dataclasses."""

    def to_dict(self: DataclassInstance) -> dict[str, Json]:
        """Plain values, for YAML and JSON."""
        return to_json(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Json]) -> Self:
        """ValueError for unknown keys and for values of another type."""
        return build(cls, data)

    def save(self: DataclassInstance, path: Path) -> None:
        """As YAML, whole or not at all."""
        save_settings(self, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """From YAML. ValueError that names the file for what cannot be read."""
        return load_settings(cls, path)


def options(cls: type, prefix: str = "") -> list[tuple[str, Any, Any, str]]:
    """(key, type, default, help) of every option of a configuration class; keys in a section are "section.key"."""
    hints, entries = get_type_hints(cls), []
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            entries += options(hints[f.name], f"{prefix}{f.name}.")
        else:
            entries.append((prefix + f.name, hints[f.name], f.default, f.metadata["help"]))
    return entries
