"""What a --config file may say: settings, but no code, models or addresses that the user has not named as well."""

from __future__ import annotations

import itertools
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_loader  # type: ignore[attr-defined]

from ttsnap.core.names import unknown
from ttsnap.files.plain_yaml import YAML_BYTES, parse_yaml
from ttsnap.files.reading import read_once
from ttsnap.options.call import WRITTEN
from ttsnap.options.devices import DeviceOptions, WorkerOptions
from ttsnap.options.model import EMBEDDED, PACKAGED, ModelOptions
from ttsnap.options.option import options_of
from ttsnap.options.sampler import AUTO, HOT, NONE, SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.rewards.registry import REWARDS, refuse_credentials

_KINDS = (SearchOptions, SamplerOptions, ModelOptions, DeviceOptions, WorkerOptions)
_DECLARED = (*(option for kind in _KINDS for option in options_of(kind)), *WRITTEN.values())


def _loading(what: str) -> set[str]:
    """The options whose values make ttsnap load such things."""
    return {option.flag for option in _DECLARED if option.loads == what}


_REWARDS, _MODELS, _ADDRESSES = {*_loading("reward"), "base"}, _loading("model"), _loading("address")
_TEXTS = {*_loading("text"), "prompts", "call"}
_NULLABLE = {option.flag for option in _DECLARED if type(None) in typing.get_args(option.written)}
_AS_IT_IS = "as it is"
set_loader(_AS_IT_IS, lambda text: text, exceptions=())


class ConfigFile(ActionConfigFile):  # type: ignore[misc]
    """--config FILE: read once, checked, and the checked values handed to the parser, which opens no file itself.

    ValueError for what no configuration may say. With --trust, or where the command line gives the same option itself,
    names of rewards and models pass.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        where = "standard input" if values == "-" else values
        data = parse_yaml(read_once(values, YAML_BYTES, "configuration file"), where)
        if not isinstance(data, dict | None):
            raise ValueError(f"{where} holds no configuration: expected keys and values, got {data!r:.80}")
        refuse_hidden(data or {}, where)
        for name in data or {}:
            if name.partition(".")[0].replace("-", "_") not in (known := parser.settings()):
                raise ValueError(f"{where}: {unknown('option', name, known)}")
        found = parse_values(parser, data or {}, where, defaults=False, _skip_validation=True)
        words = list(itertools.takewhile(lambda word: word != "--", parser.args))
        given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
        strange = {k: value for k, value in _strange(found.as_dict()) if f"--{k.replace('_', '-')}" not in given}
        for value in strange.values():
            refuse_credentials(value)
        if strange and "--trust" not in given:
            named = ", ".join(f"{name} {value!r}" for name, value in strange.items())
            raise ValueError(
                f"{where} names {named[:300]}: code is not run, nor weights, addresses and files elsewhere used, "
                f"because a configuration says so. Give --{next(iter(strange)).replace('_', '-')} yourself, or add "
                "--trust where you trust the file"
            )
        cfg.update(found)


def parse_values(parser: ArgumentParser, data: dict[str, Any], where: object, **how: bool) -> Namespace:
    """The options in a file, as a parser of the command line takes them. ValueError for what would import code.

    Texts stay texts: read a second time, as what is typed is, they could become what was not looked at.
    """
    refuse_hidden(data, where)
    typed = parser.parser_mode
    parser.parser_mode = _AS_IT_IS
    try:
        given: Namespace = parser.parse_object(data, env=False, **how)
        return given
    finally:
        parser.parser_mode = typed


def refuse_nulls(given: Namespace, defaults: Namespace) -> None:
    """ValueError for null where an option has a value by default: the parser lets it pass for every type."""
    for name, default in defaults.items():
        if default is not None and name not in _NULLABLE and given.get(name, default) is None:
            raise ValueError(f"{name} is null; leave it out for its default, {default!r:.80}")


_BASE_60 = re.compile(r"[-+]?[0-9_]+(:[0-9_.]+){9,}")
"""Of a megabyte of digits such as 1:1:1, YAML 1.1 makes one number, in ten minutes."""


def refuse_hidden(data: Any, where: object) -> None:
    """ValueError for keys by which the parser would import what a file names, or read another file, and for texts that
    would fill the memory or take minutes: where a number belongs, the parser reads them as YAML of its own."""
    for name, value in _leaves(data):
        if isinstance(value, str) and _repeats(value):
            raise ValueError(f"{where} holds a text in {name[:80]} that uses YAML aliases (*name); write it in full")
        if isinstance(value, str) and _BASE_60.fullmatch(value):
            raise ValueError(f"{where} holds a number in base 60 in {name[:80]}, {value[:20]}...; write it in base 10")
        keys = name.split(".")
        if "class_path" in keys:
            raise ValueError(f"{where} holds {name[:80]}, which would import code; there is no such setting")
        if name == "config":
            raise ValueError(f"{where} names another configuration; give each with --config")
        if any(key.endswith("+") for key in keys):
            raise ValueError(f"{where} holds {name[:80]}; name the whole list, without the +")


def _repeats(text: str) -> bool:
    """Whether a text is YAML with anchors and aliases, of which a few lines can stand for millions of values."""
    if "&" not in text or "*" not in text:
        return False
    try:
        return sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)) > 0
    except yaml.YAMLError:  # as in nearly all texts: words
        return False


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a configuration, as record.model; lists and mappings that hold something are
    gone through.

    ValueError for values of other types than YAML and JSON have: nothing that is not understood passes.
    """
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, list | tuple) and data:
        for item in data:
            yield from _leaves(item, name)
    elif data is None or isinstance(data, bool | int | float | str | dict | list | tuple):
        yield name, data
    else:
        raise ValueError(f"{name} is no plain value: {data!r:.80}")


def _strange(data: Any) -> Iterator[tuple[str, str]]:
    """What a configuration names beyond that which comes with ttsnap."""
    for name, value in _leaves(data):
        key = name.rpartition(".")[2].replace("-", "_")
        if not isinstance(value, str):
            continue
        reward = key in _REWARDS and any(part.strip() not in REWARDS for part in re.split(" then | on ", value))
        ours = value.partition(":")[0] in (AUTO, NONE, HOT, EMBEDDED) if key == "draft" else value in PACKAGED
        model = key in _MODELS and not ours
        code = (key == "kind" and ":" in value) or (key == "attention" and "hub" in value)
        address = key in _ADDRESSES and value != "auto"
        texts = _words(value) if key == "algorithms" else [value]
        away = name.removeprefix("record.").partition(".")[0] not in _TEXTS and any(map(_is_away, texts))
        if reward or model or code or address or away:
            yield name, value


def _is_away(text: str) -> bool:
    """Whether it is a path that may lead out of the folder that ttsnap runs in."""
    path = PurePath(text)
    return path.is_absolute() or ".." in path.parts or text.startswith("~")


def _words(text: str) -> Iterator[str]:
    """What an arm of a benchmark names, "nested first=a.json": its algorithm, and the texts among its options."""
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        values = _leaves(parse_yaml(value, f"{name} of {text!r}"))
        yield from (name, *(part for _, part in values if isinstance(part, str)))
