"""YAML that may come from strangers, read as plain values: those that JSON has. Settings as such
files."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_origin

import yaml

from ttsnap.files.reading import DEPTH, HUGE, foreign, read_bytes, reason, unique
from ttsnap.files.settings import Json, build, check, kinds_of, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S")

YAML_BYTES = 2**20


def read_yaml(path: str | Path, what: str = "file") -> Json:
    """The value in a YAML file. ValueError, as of `read_bytes` and `parse_yaml`."""
    return parse_yaml(read_bytes(path, YAML_BYTES, what), path)


def load_settings(cls: type[S], path: Path) -> S:
    """Settings of this dataclass from a YAML file. ValueError, which names the file, for what
    `build` refuses."""
    data = read_yaml(path, "configuration")
    if not isinstance(data, dict):
        raise ValueError(
            f"{path} holds no configuration: expected keys and values, got {data!r:.80}"
        )
    try:
        return build(cls, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def as_yaml(settings: DataclassInstance) -> str:
    """A dataclass as YAML. `load_settings` reads it back from a file."""
    return yaml.safe_dump(to_json(settings), sort_keys=False, allow_unicode=True)


def read_text(name: str, text: str, hint: Any) -> Any:
    """A typed value from the text that a user typed: the text itself where it fits, else the YAML
    in it.

    hint: the type; None takes any text. ValueError for what does not fit.
    """
    if hint is None:
        return text
    kinds = [kind for kind in kinds_of(hint) if kind is not type(None)]
    if text == "null" and len(kinds) < len(kinds_of(hint)):
        return None
    value: object = text
    words = str in kinds or all(get_origin(kind) is Literal for kind in kinds)
    if not words or (text.startswith("[") and any(get_origin(kind) is list for kind in kinds)):
        try:
            value = parse_yaml(text, name)
        except ValueError:
            # Also for whole numbers beyond 64 bits, of which their option says what it takes.
            value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,400}", text) else text
    try:
        return check(name, value, hint)
    except ValueError as error:
        raise ValueError(f"{error}{_example(name, get_origin(kinds[0]), text)}") from None


_EXAMPLES: dict[object, str] = {
    dict: "--call.clip_skip 1",
    list: "'[2, 6]'",
    Sequence: "'[2, 6]'",
}


def _example(name: str, kind: object, text: str) -> str:
    """How a value of an option is written, after an error: of KEY=VALUE with this key and this
    value."""
    pair = re.fullmatch(r"(\w+)=(.+)", text)
    if kind is dict and pair is not None:
        return f"; write it as {name}.{pair[1]} {shlex.quote(pair[2])}"
    return f"; write it as {_EXAMPLES[kind]}" if kind in _EXAMPLES else ""


def parse_yaml(text: str | bytes, where: object) -> Json:
    """The value that YAML text stands for: mappings, sequences, texts, numbers, booleans and null.

    A plain date or time (12:30) is a text, 1e-4 a number, and 012 twelve, as in YAML 1.2.
    ValueError for damage, deep nesting, a key that stands twice, and any other tag (!!set,
    !!binary, << that merges). ValueError, too, for numbers that are not finite or beyond 64 bits,
    and for aliases: a few lines of them can stand for thousands of millions of values.
    """
    with foreign(f"cannot read {where}"):
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    "it uses aliases (*name), which are not read here; write the values out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > DEPTH:
                raise ValueError("it is nested too deeply")
        loader = _Yaml(text)
        node = loader.get_single_node()
    try:
        return None if node is None else _yaml_value(node, loader)
    except ValueError as error:
        raise ValueError(f"cannot read {where}: {reason(error)}") from None


class _Yaml(yaml.SafeLoader):
    """Text to nodes, where a plain date is a text and 1e-4 a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_ZEROS = re.compile(r"[-+]?0[0-9]+")
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _yaml_value(node: yaml.Node, loader: yaml.SafeLoader) -> Json:
    """What a node stands for. ValueError for all but the seven kinds of plain values."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return unique(
            [(_yaml_key(key, loader), _yaml_value(value, loader)) for key, value in node.value]
        )
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_yaml_value(item, loader) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or kind not in ("str", "int", "float", "bool", "null"):
        raise ValueError(
            f"line {node.start_mark.line + 1} holds a value with the tag {node.tag[-40:]}; plain"
            " values are read here: mappings, sequences, texts, numbers, true, false and null"
        )
    # JSON writes two halves of a character, which YAML does not join; half of one fails
    if kind == "str":
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
    # YAML 1.1 makes 750 of 12:30, and takes minutes for a megabyte of such digits
    if ":" in node.value:
        return str(node.value)
    with foreign(f"line {node.start_mark.line + 1}"):
        decimal = kind == "int" and _ZEROS.fullmatch(node.value)
        value: Json = int(node.value) if decimal else loader.construct_object(node)
    if (
        abs(value) >= HUGE
        if isinstance(value, int)
        else isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"{node.value[:40]} is no finite number of 64 bits")
    return value


def _yaml_key(node: yaml.Node, loader: yaml.SafeLoader) -> str:
    if isinstance(key := _yaml_value(node, loader), str):
        return key
    raise ValueError(
        f"line {node.start_mark.line + 1} has the key {str(key)[:40]}, which is no text; quote it"
    )
