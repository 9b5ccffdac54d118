"""The files of --config: settings, but no code, models or addresses that the user has not named as
well."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ttsnap.core.checklist import LIST
from ttsnap.core.names import unknown
from ttsnap.core.requirement import Requirement
from ttsnap.files.pictured import SUFFIXES
from ttsnap.files.plain_yaml import read_yaml
from ttsnap.files.settings import check, kinds_of
from ttsnap.options.call import WRITTEN
from ttsnap.options.engine import WorkerOptions
from ttsnap.options.every import DECLARED
from ttsnap.options.model import PACKAGED, ModelOptions
from ttsnap.options.option import options_of
from ttsnap.options.sampler import comes_along
from ttsnap.reward_models.registry import REWARDS, refuse_credentials, without_queries

_LOADS = {
    option.flag: option.loads
    for option in (
        *DECLARED.values(),
        *options_of(ModelOptions),
        *options_of(WorkerOptions),
        *WRITTEN.values(),
    )
}
"""What the values of options make ttsnap load."""
_TEXTS = {*(name for name, what in _LOADS.items() if what == "text"), "prompts", "call"}


def read_config(known: Mapping[str, Action], path: str, words: Sequence[str]) -> dict[str, Any]:
    """The values of a configuration file by the names of options, checked.

    known: the options of the command; words: the command line. ValueError for what no configuration
    may say. Code, weights, addresses and files elsewhere pass with --trust.
    """
    data = read_yaml(path, "configuration file")
    if not isinstance(data, dict | None):
        raise ValueError(
            f"{path} holds no configuration: expected keys and values, got {data!r:.80}"
        )
    settings = settings_in(known, data or {}, path)
    strange = dict(_strange(settings))
    for value in strange.values():
        refuse_credentials(value)
    if strange and "--trust" not in words:
        named = ", ".join(
            f"{name} {without_queries(repr(value))}" for name, value in strange.items()
        )
        raise ValueError(
            f"{path} names {named[:300]}: code is not run, nor weights, addresses and files"
            " elsewhere used, because a configuration says so. Add --trust where you trust the"
            " file"
        )
    return settings


def presets_in(folder: Path) -> list[str]:
    """The names of the presets that come with ttsnap, each a YAML file in this folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_preset(folder: Path, name: str) -> dict[str, Any]:
    """The settings of a preset, over those of the preset that it names itself. ValueError for
    another name."""
    if name not in (names := presets_in(folder)):
        raise ValueError(unknown("preset", name, names))
    settings: Any = read_yaml(folder / f"{name}.yaml")
    below = settings.pop("preset", None)
    return settings if below is None else {**read_preset(folder, below), **settings}


def settings_in(
    known: Mapping[str, Action], data: Mapping[str, Any], where: str, section: str = ""
) -> dict[str, Any]:
    """Values by the names of options, "section.name" for those in a section.

    ValueError that names `where` for what is no option or does not fit its type."""
    settings: dict[str, Any] = {}
    for key, value in data.items():
        name = section + key.replace("-", "_")
        if name in known:
            settings[name] = _checked(known[name], value, where)
        elif isinstance(value, Mapping) and any(each.startswith(f"{name}.") for each in known):
            settings |= settings_in(known, value, where, f"{name}.")
        else:
            names = [
                each.removeprefix(section).partition(".")[0]
                for each in known
                if each.startswith(section)
            ]
            raise ValueError(f"{where}: {unknown('option', section + key, dict.fromkeys(names))}")
    return settings


def _checked(action: Action, value: object, where: str) -> object:
    hint: Any = bool if action.nargs == 0 else getattr(action, "hint", None)
    if hint is None:
        return value
    if value is None and type(None) not in kinds_of(hint):
        raise ValueError(
            f"{where}: {action.dest} is null; leave it out for its default, {action.default!r:.80}"
        )
    try:
        return check(action.dest, value, list[hint] if action.nargs in ("+", "*") else hint)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


_WORDS = " then | on | by "
"""Between the names of rewards in one."""


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all values in a configuration, those in lists and mappings too, named as
    record.model."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _leaves(item, name)
    else:
        yield name, data


def _strange(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) of what a configuration names that does not come with ttsnap."""
    for name, value in _leaves(data):
        key = name.rpartition(".")[2].replace("-", "_")
        if isinstance(value, str) and not (
            _comes_along(key, value)
            and (_is_text(name.removeprefix("record."), value) or not _is_away(value))
        ):
            yield name, value


def _comes_along(key: str, value: str) -> bool:
    """Whether what an option's value names comes with ttsnap, or nothing is loaded for it."""
    if key in ("require", "until"):
        key = "reward"
        value = str(Requirement.parse(value).reward)
    if key == "draft":
        return comes_along(value)
    if key == "attention":
        return "hub" not in value
    if key in ("algorithm", "compare"):
        return ".py:" not in value
    if key == "algorithms":  # an arm, as "nested first=a.json"
        plain = value.replace("'", "").replace('"', "")
        return ".py:" not in plain and not re.search(r"[\\/~]|\.\.", plain)
    match "reward" if key == "base" else "likeness" if key == "kind" else _LOADS.get(key):
        case "reward":
            return {part.strip() for part in re.split(_WORDS, value)} <= {*REWARDS, LIST}
        case "model":
            return value in PACKAGED
        case "address":
            return value == "auto"
        case "likeness":
            return ":" not in value
    return True


def _is_text(name: str, value: str) -> bool:
    """Whether the value of an option is a text, and no file: an argument of the call may be a
    picture."""
    head = name.partition(".")[0]
    return head in _TEXTS and (head != "call" or PurePath(value).suffix.lower() not in SUFFIXES)


def _is_away(text: str) -> bool:
    """Whether a text is a path that may lead out of the working directory."""
    path = PurePath(text)
    return path.is_absolute() or ".." in path.parts or text.startswith("~")
