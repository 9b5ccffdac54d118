"""The parser of a command: argparse, with the type hints of declarations as types, and the looks of
its help: a short usage, options in groups, defaults only where they say something, 80 columns."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin

from ttsnap.cli.configs import read_config, read_preset, settings_in
from ttsnap.core.names import did_you_mean
from ttsnap.files.plain_yaml import dumped, parse_yaml, read_text
from ttsnap.files.settings import kinds_of, plain
from ttsnap.loop.budget import UNITS
from ttsnap.options.call import WRITTEN

COLUMN = 26
_METAVARS: dict[object, str] = {int: "N", float: "X", bool: "{true,false}"}


class Common(str):
    """The help of an option that most people need: --help shows it, --help-all the others as
    well."""


def page(parser: argparse.ArgumentParser) -> str:
    """What --help prints: usage, what the command is for, an example or two, the options that most
    people need.

    For a parser with commands it is the whole help."""
    whole = parser.format_help()
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        return whole
    options = [
        a for a in parser._actions if a.option_strings and a.option_strings[0] not in _ELSEWHERE
    ]
    if len(options) > MOST_OPTIONS:
        options = [action for action in options if isinstance(action.help, Common)]
    first, *examples = re.split(r"^examples?:\n", parser.description or "", flags=re.M)
    formatter = parser._get_formatter()
    formatter.add_text(first.split("\n\n")[0])
    if examples:
        lines = examples[0].rstrip().splitlines()
        if len(lines) > EXAMPLE_LINES:  # whole commands alone: none ends in a backslash
            lines = lines[
                : max(i for i in range(EXAMPLE_LINES + 1) if not lines[i - 1].endswith("\\"))
            ]
        formatter.add_text("examples:\n" + "\n".join(lines))
    formatter.start_section("options")
    formatter.add_arguments(
        [_in_a_line(a) for a in parser._actions if not a.option_strings or a in options]
    )
    formatter.end_section()
    formatter.add_text(f"{parser.prog} --help-all tells more, and lists all of its options.")
    usage = whole.partition("\n\n")[0]
    return f"{usage}\n\n{formatter.format_help()}"


_ELSEWHERE = ("-h", "--help-all", "--print_config", "--trust")
"""Options that the page of --help leaves to --help-all."""
MOST_OPTIONS = 18
EXAMPLE_LINES = 3
"""What fits on a page: with more options only the common ones are listed, of the examples the first
lines."""


def _in_a_line(action: argparse.Action) -> argparse.Action:
    """The same option, its help cut to one line."""
    short = copy.copy(action)
    text = (action.help or "").split(" (default: ")[0]
    room = shutil.get_terminal_size().columns - 2 - COLUMN
    short.help = textwrap.shorten(text, room, placeholder=" ...") if len(text) > room else text
    return short


def metavar(hint: Any, dest: str) -> str:
    """The placeholder of a value of this type."""
    kinds = [] if hint is None else [kind for kind in kinds_of(hint) if kind is not type(None)]
    if len(kinds) == 1 and kinds[0] in _METAVARS:
        return _METAVARS[kinds[0]]
    return (
        "[ITEM,...]" if get_origin(hint) in (list, tuple) else re.split(r"[._]", dest)[-1].upper()
    )


def with_default(text: str, default: Any) -> str:
    """The help of an option with its default, as one would type it, where that says something."""
    nothing = default is False or default in (None, [], (), {}, "", argparse.SUPPRESS)
    if nothing or "default" in text:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return type(text)(f"{text} (default: {shown})")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A short usage, and paragraphs that are wrapped."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{**settings, "max_help_position": COLUMN})

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any
    ) -> None:
        """`ttsnap COMMAND [options]`, and what stands without a flag."""
        self._prog += " [options]"
        super().add_usage(
            usage, [action for action in actions if not action.option_strings], *args, **kwargs
        )

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """One with indented lines is left as it is."""
        paragraphs = text.strip("\n").split("\n\n")
        filled = [p if re.search(r"^\s", p, re.M) else textwrap.fill(p, width) for p in paragraphs]
        return textwrap.indent("\n\n".join(filled), indent) + "\n"


class Arguments(argparse.Namespace):
    """The arguments of a command by name; those of a section as "section.name"."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default where the command has none of that name."""
        return vars(self).get(name, default)

    def nested(self) -> dict[str, Any]:
        """All arguments as --config reads them: sections as mappings."""
        nested: dict[str, Any] = {}
        for name, value in vars(self).items():
            section, _, key = name.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[key] = value
        return nested


class _Store(argparse.Action):
    """Store what is typed as a value of the option's type; --options.n 16 sets one key of a
    mapping.

    hint: the type; argparse takes no type hints. needed: whether the option must be given, on the
    command line or in a file. ValueError for what does not fit the type.
    An option of one value or a list may be given several times.
    """

    def __init__(self, *args: Any, type: Any = None, required: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self.hint = type
        self.needed = required
        self.again = list in _origins(self)
        self.metavar = self.metavar or metavar(type, self.dest)
        if self.option_strings:
            text = self.help or ""
            self.help = (
                text.__class__(f"{text} (required)")
                if required
                else with_default(text, self.default)
            )

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if option_string is not None and option_string not in self.option_strings:
            value: object = self._with_part(namespace, option_string, values)
        else:
            value = self._read(option_string or str(self.metavar), values)
        if self.again and values is not self.default:
            value = self._with_earlier(namespace, value)
        setattr(namespace, self.dest, value)

    def _read(self, name: str, values: Any) -> object:
        """What is typed as a value, or several, of this argument's type; the default as it is."""
        if isinstance(values, list):
            return [read_text(name, each, self.hint) for each in values]
        return values if values is self.default else read_text(name, values, self.hint)

    def _with_part(self, namespace: Any, option_string: str, text: str) -> dict[str, Any]:
        """The values so far with the one that --options.NAME names."""
        keys = option_string.removeprefix(f"{self.option_strings[0]}.").split(".")
        return _with(namespace[self.dest], keys, _loose(text))

    def _with_earlier(self, namespace: Any, value: object) -> object:
        """All that was typed of an option that may be given again; one value as it is."""
        typed = vars(namespace).setdefault(_TYPED, {})
        new = value if isinstance(value, list) else [value]
        earlier = typed.setdefault(self.dest, [])
        earlier += new
        return list(earlier) if len(earlier) > len(new) else value


PRESET_PARTS = "parts"
"""Settings of the parts of a preset, by their names, which are no option: `ttsnap bench` runs one
after the other."""
_TYPED = "_typed"
"""Where a namespace has what was typed of options that may be given again, while arguments are
read."""


def _loose(text: str) -> object:
    """The value of an option without a type: what YAML reads, where that is more than words."""
    try:
        value = parse_yaml(text, "a value")
    except ValueError:
        return text
    words = (
        not text.strip()
        or isinstance(value, str)
        or (isinstance(value, dict | list) and text[0] not in "{[")
    )
    return text if words else value


def _with(values: Mapping[str, Any] | None, keys: Sequence[str], value: object) -> dict[str, Any]:
    """These values with one more, at a path of keys."""
    inner = (values or {}).get(keys[0])
    if len(keys) > 1:
        value = _with(inner if isinstance(inner, Mapping) else None, keys[1:], value)
    return {**(values or {}), keys[0]: value}


class _HelpAll(argparse.Action):
    """--help-all: print the whole help and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser._print_message(parser.format_help(), sys.stdout)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser whose --help is a page, which reads --config files, and whose errors say what was
    probably meant.

    The `type` of an argument is a type hint, as in declarations. What is typed wins over files.
    """

    presets: Path | None = None
    """The folder of what --preset names. Files of --config and what is typed win over it."""

    def __init__(self, description: str, epilog: str | None = None, **more: Any) -> None:
        # No abbreviations: read_config looks for options by their whole names.
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
            **more,
        )
        self.register("action", None, _Store)
        self._negative_number_matcher = re.compile(r"-\d")  # also -50nfe is a value, and no option
        shown = "show all options and exit"
        self.add_argument(
            "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=shown
        )

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:  # type: ignore[override]
        """As argparse has it; `type` is a type hint."""
        return super().add_argument(*names, **how)

    def add_argument_group(self, *words: Any, **how: Any) -> Any:
        """A group of options in the help, whose `add_argument` takes type hints, too."""
        return super().add_argument_group(*words, **how)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Arguments:  # type: ignore[override]
        """The arguments of the command line and of the files of --config. ValueError for what no
        file may say."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        for word in options:  # --options.n sets one key of the option --options
            flag = word.partition("=")[0]
            name = flag.partition(".")[0]
            if (
                flag != name
                and flag not in self._option_string_actions
                and name in self._option_string_actions
            ):
                action = self._option_string_actions[name]
                if any(
                    isinstance(kind, type) and issubclass(kind, Mapping)
                    for kind in _origins(action)
                ):
                    self._option_string_actions[flag] = action
        settings: dict[str, Any] = {}
        if "--config" in self._option_string_actions:
            for path in _values(options, "--config"):
                settings |= read_config(self.settings(), path, options)
        typed = _values(options, "--preset")
        preset = typed[-1] if typed else settings.get("preset")
        if self.presets is not None and preset is not None:
            preset_settings = read_preset(self.presets, str(preset))
            preset_settings.pop(PRESET_PARTS, None)
            settings = (
                settings_in(self.settings(), preset_settings, f"the preset {preset}") | settings
            )
        return self._whole(settings, words)

    def filled(self, data: Mapping[str, Any], where: str) -> Arguments:
        """The arguments that a mapping gives, as a file would, and defaults for the others.

        ValueError for what is unknown, missing, or does not fit."""
        settings = settings_in(self.settings(), data, where)
        if missing := self._missing(settings):
            raise ValueError(f"{where} lacks {' and '.join(missing).lower()}")
        return self._whole(settings, [])

    def settings(self) -> dict[str, argparse.Action]:
        """The options that a configuration may set, by name."""
        return {action.dest: action for action in self._actions if action.dest not in _NO_SETTINGS}

    def _whole(self, settings: Mapping[str, Any], words: Sequence[str]) -> Arguments:
        arguments: Arguments = super().parse_args(words, Arguments(**settings))
        if missing := self._missing(vars(arguments)):
            self.error(f"{' and '.join(missing)} must be given")
        vars(arguments).pop("config", None)
        vars(arguments).pop(_TYPED, None)
        if vars(arguments).pop("print_config", False):
            shown = Arguments(
                **{a.dest: arguments[a.dest] for a in self._actions if a.dest in arguments}
            )
            print(dumped(plain(shown.nested())), end="")
            self.exit()
        return arguments

    def _missing(self, settings: Mapping[str, Any]) -> list[str]:
        needed = [action.dest for action in self._actions if getattr(action, "needed", False)]
        return [name.rpartition(".")[2].upper() for name in needed if settings.get(name) is None]

    def print_help(self, file: Any = None) -> None:
        """Print the page of --help (ttsnap.cli.parser.page)."""
        self._print_message(page(self), sys.stdout if file is None else file)

    def error(self, message: str) -> NoReturn:
        # what is typed may hold a password
        said = re.sub(r"://[^/\s]*@", "://***@", self._worded(message))
        self.exit(2, f"ttsnap: error: {said} ({self.prog} --help lists the options)\n")

    def _worded(self, message: str) -> str:
        if message.startswith("unrecognized arguments: "):
            words = message.partition(": ")[2].split()
            flag = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
            name = flag.removeprefix("--").replace("-", "_")
            meant = f"; it is {WRITTEN[name].dashed} here" if name in WRITTEN else ""
            if words[0].casefold().removesuffix("s") in UNITS:
                meant = f"; a number and its unit are one word, as 50{words[0]}"
            if flag == "--dry-run":
                meant = "; it is ttsnap check MODEL --dry-run"
            meant = meant or did_you_mean(flag, self._option_string_actions)
            return f"unknown argument{'s' if len(words) > 1 else ''} {' '.join(words)[:200]}{meant}"
        return message.replace(
            "expected one argument",
            "a value has to follow; one that begins with - as --option=-VALUE",
        )


_NO_SETTINGS = ("help", "help_all", "print_config", "config")
"""Options of the command line alone."""


def _origins(action: argparse.Action) -> list[object]:
    hint = getattr(action, "hint", None)
    return [] if hint is None else [get_origin(kind) for kind in kinds_of(hint)]


def _values(words: Sequence[str], flag: str) -> list[str]:
    """The values of a flag, wherever it stands."""
    after = [words[i + 1] for i, word in enumerate(words[:-1]) if word == flag]
    return [*after, *(word.partition("=")[2] for word in words if word.startswith(f"{flag}="))]
