"""YAML that may come from strangers, read as plain values: those that JSON has. Settings as such
files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_origin

import yaml

from ttsnap.files.reading import bounded, foreign, read_bytes, unique
from ttsnap.files.settings import Json, build, check, kinds_of, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S")

YAML_BYTES = 2**20
DEPTH = 64
"""Most levels of lists and mappings inside each other."""


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
    return dumped(to_json(settings))


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


class _Yaml(yaml.SafeLoader):
    """Values of YAML 1.2, and no other tags. Aliases are refused: a few lines of them can stand for
    thousands of millions of values."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {None: yaml.SafeLoader.construct_undefined}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it uses aliases (*name), which are not read here; write them out")
        self.depth += 1
        if self.depth > DEPTH:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Yaml`, or a reader of YAML 1.1, would read as another value."""


def _mapping(loader: _Yaml, node: Any) -> dict[str, Json]:
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    for key, _ in pairs:
        if not isinstance(key, str):
            line = node.start_mark.line + 1
            raise ValueError(f"line {line} has the key {key!r:.40}, which is no text; quote it")
    return unique(pairs)


def _sequence(loader: _Yaml, node: Any) -> list[Json]:
    return loader.construct_sequence(node, deep=True)


def _add(kind: str, read: Callable[[str], Json], pattern: str, *first: str) -> None:
    """Have texts of a pattern, which begin with one of these characters, read as values of a
    kind."""
    tag = f"tag:yaml.org,2002:{kind}"
    if first:
        for reader in (_Yaml, _Dumper):
            reader.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})$"), first)
    _Yaml.add_constructor(tag, lambda _, node: read(node.value))


_add("null", lambda text: None, "~|null|Null|NULL|", "~", "n", "N", "")
_BOOL = {"true": True, "false": False}
_add("bool", lambda text: _BOOL[text.lower()], "[tT]rue|TRUE|[fF]alse|FALSE", *"tTfF")
_add("int", lambda text: bounded(int(text)), "[-+]?[0-9]+", *"-+0123456789")
# infinity and nan are read as numbers, so that they are refused
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_add("float", lambda text: bounded(float(text)), _FLOAT, *"-+.0123456789")
# JSON writes two halves of a character, which YAML does not join; half of one fails
_add("str", lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16"), "")
_Yaml.add_constructor("tag:yaml.org,2002:map", _mapping)
_Yaml.add_constructor("tag:yaml.org,2002:seq", _sequence)


def parse_yaml(text: str | bytes, where: object) -> Json:
    """The value that YAML 1.2 text stands for: mappings, sequences, texts, numbers, booleans and
    null.

    ValueError for damage, deep nesting, a key that stands twice, aliases, other tags (!!set), and
    numbers that are not finite or beyond 64 bits.
    """
    with foreign(f"cannot read {where}"):
        value: Json = yaml.load(text, _Yaml)
    return value


def dumped(value: Json) -> str:
    """A value as YAML, which `parse_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
