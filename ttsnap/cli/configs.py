"""What a --config file may say: settings, but no code, models or addresses that the user has not named as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import Namespace

from ttsnap.files import reading as files
from ttsnap.options.call import WRITTEN
from ttsnap.options.model import EMBEDDED, PACKAGED, ModelOptions
from ttsnap.options.option import options_of
from ttsnap.options.sampler import HOT, SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.rewards.registry import REWARDS

_DECLARED = (*options_of(SearchOptions), *options_of(SamplerOptions), *options_of(ModelOptions), *WRITTEN.values())


def _loading(what: str) -> set[str]:
    """The options whose values make ttsnap load such things."""
    return {option.flag for option in _DECLARED if option.loads == what}


_REWARDS, _MODELS = {*_loading("reward"), "base"}, _loading("model")
_TEXTS = {*_loading("text"), "prompts", "call"}


def check_configs(argv: Sequence[str]) -> None:
    """Look at every file of --config in a command line, before it is parsed: ValueError for what none may say.

    With --trust, or where the command line gives the same option itself, names of rewards and models pass.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    for path in _paths(argv):
        if not Path(path).is_file():  # text in its place, or nothing: the parser's matter
            continue
        data = files.read_yaml(path, "configuration")
        if not isinstance(data, dict | None):
            raise ValueError(f"{path} holds no configuration: expected keys and values, got {data!r:.80}")
        refuse_classes(data, path)
        strange = {name: value for name, value in _strange(data) if f"--{name.replace('_', '-')}" not in given}
        if strange and "--trust" not in given:
            named = ", ".join(f"{name} {value!r}" for name, value in strange.items())
            raise ValueError(
                f"{path} names {named[:300]}: code is not run, nor weights, addresses and files elsewhere used, "
                f"because a configuration says so. Give --{next(iter(strange)).replace('_', '-')} yourself, or add "
                "--trust where you trust the file"
            )


def refuse_nulls(given: Namespace, defaults: Namespace) -> None:
    """ValueError for null where an option has a value by default: the parser lets it pass for every type."""
    for name, default in defaults.items():
        if default is not None and given.get(name, default) is None:
            raise ValueError(f"{name} is null; leave it out for its default, {default!r:.80}")


def refuse_classes(data: Any, where: object) -> None:
    """ValueError for the key by which the parser of the command line would import what a file names."""
    for name, _ in _leaves(data):
        if "class_path" in name.split("."):
            raise ValueError(f"{where} holds {name[:80]}, which would import code; there is no such setting")
        if name == "config":
            raise ValueError(f"{where} names another configuration; give each with --config")


def _paths(argv: Sequence[str]) -> Iterator[str]:
    for at, word in enumerate(argv):
        if word.startswith("--config="):
            yield word.partition("=")[2]
        elif word == "--config" and at + 1 < len(argv):
            yield argv[at + 1]


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a configuration that is no mapping, as record.model; lists are gone through."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, list):
        for item in data:
            yield from _leaves(item, name)
    else:
        yield name, data


def _strange(data: Any) -> Iterator[tuple[str, str]]:
    """What a configuration names beyond that which comes with ttsnap."""
    for name, value in _leaves(data):
        key = name.rpartition(".")[2].replace("-", "_")
        if not isinstance(value, str):
            continue
        reward = key in _REWARDS and any(part.strip() not in REWARDS for part in re.split(" then | on ", value))
        ours = value.partition(":")[0] in (HOT, EMBEDDED) if key == "draft" else value in PACKAGED
        model = key in _MODELS and not ours
        code = (key == "kind" and ":" in value) or (key == "attention" and "hub" in value)
        path = PurePath(value)
        away = path.is_absolute() or ".." in path.parts or value.startswith("~")
        if reward or model or code or (away and name.partition(".")[0] not in _TEXTS):
            yield name, value
