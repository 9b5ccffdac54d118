"""How help looks: a short usage, options in groups, defaults only where they say something, 80 columns."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ttsnap.core.names import did_you_mean, unknown
from ttsnap.options.call import WRITTEN

COLUMN = 26


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions; leaves out types and defaults that say nothing."""

    def __init__(self, prog: str, **settings: Any) -> None:
        # "ttsnap [options] generate" is how jsonargparse names the parser of a command.
        super().__init__(prog.replace(" [options]", ""), **{**settings, "max_help_position": COLUMN})

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any) -> None:
        """`ttsnap COMMAND`, what has to be given, and [options]."""
        words = [self._prog]
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                words.append("COMMAND [options]")
            elif not action.option_strings:
                words.append(self._format_args(action, self._get_default_metavar_for_positional(action)))
            elif action.required:
                value = self._format_args(action, self._get_default_metavar_for_optional(action))
                words.append(f"{action.option_strings[0]} {value}")
        more = [] if "COMMAND [options]" in words else ["[options]"]
        super().add_usage(" ".join([*words, *more]), [], *args, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are wrapped; one with indented lines is left as it is."""
        paragraphs = text.strip("\n").split("\n\n")
        filled = [p if re.search(r"^\s", p, re.M) else textwrap.fill(p, width) for p in paragraphs]
        return textwrap.indent("\n\n".join(filled), indent) + "\n"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        value = self._metavar_formatter(action, default_metavar)(1)[0]
        return {"+": f"{value} ...", "*": f"[{value} ...]"}.get(
            str(action.nargs), super()._format_args(action, default_metavar)
        )

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = (self._get_type_str(action) or "").removesuffix(" | null")
        return {"int": "N", "float": "X"}.get(kind, action.dest.rsplit(".")[-1].rsplit("_")[-1].upper())

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "--print_config" in action.option_strings:
            return "print all settings in the form that --config reads, and exit"
        quiet = isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or "default" in text
        if action.required and action.option_strings:
            return f"{text} (required)"
        if quiet or not action.option_strings or _says_nothing(action.default):
            return text
        return f"{text} (default: {_shown(action.default)})"

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        # The line above the list of commands, which says that one has to be given: the usage says so, too.
        return text.split("\n", 1)[1] if isinstance(action, argparse._SubParsersAction) else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        plain = [name for name in action.option_strings if not name.endswith("+")]  # --reward+ appends, in YAML terms
        if not plain or action.nargs == 0:
            return super()._format_action_invocation(action)
        if "--print_config" in plain:
            return plain[0]
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(plain)} {value}"


def _says_nothing(default: Any) -> bool:
    """Whether a default is only the absence of a value."""
    return default is None or default is False or default in ([], (), {}, "", argparse.SUPPRESS)


def _shown(default: Any) -> str:
    """As one would type it."""
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


class Common(str):
    """The help of an option that most people need: the page of --help has it, others are in --help-all."""


class Parser(ArgumentParser):
    """A parser whose --help is a page, and whose errors are in words: no Python types, but what was probably meant."""

    def print_help(self, file: Any = None) -> None:
        """The page: usage, what the command is for, an example or two, and the options that most people need."""
        self._print_message(self._page(), sys.stdout if file is None else file)

    def settings(self) -> list[str]:
        """The names of what a configuration may set, as keep; of those with parts, as record.model, the first part."""
        names = [action.dest.partition(".")[0] for action in self._actions]
        return list(dict.fromkeys(name for name in names if name not in _NO_SETTINGS))

    def _page(self) -> str:
        whole = str(self.format_help())
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return whole
        options = [a for a in self._actions if a.option_strings and a.option_strings[0] not in _ELSEWHERE]
        if len(options) > MOST_OPTIONS:
            options = [action for action in options if isinstance(action.help, Common)]
        first, *examples = re.split(r"^examples?:\n", self.description or "", flags=re.M)
        page = self._get_formatter()
        page.add_text(first.split("\n\n")[0])
        if examples:
            page.add_text("examples:\n" + "\n".join(_whole_commands(examples[0].rstrip().splitlines(), EXAMPLE_LINES)))
        page.start_section("options")
        page.add_arguments([_in_a_line(a) for a in self._actions if not a.option_strings or a in options])
        page.end_section()
        name = self.prog.replace(" [options]", "")
        page.add_text(f"{name} --help-all tells more, and lists all of its options.")
        usage = whole.partition("\n\n")[0]
        return f"{usage}\n\n{page.format_help()}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(re.sub(r"://[^/\s]*@", "://***@", self._worded(message)), ex)  # what is typed may hold a password

    def _worded(self, message: str) -> str:
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            names = re.findall(r"'([^']*)'", found[2])
            return unknown("command" if "command:" in message else "choice", found[1], names)
        if message.startswith("unrecognized arguments: "):
            known = [name for action in self._actions for name in action.option_strings if not name.endswith("+")]
            words = message.partition(": ")[2].split()
            flag = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
            name = flag.removeprefix("--").replace("-", "_")
            meant = f"; it is {WRITTEN[name].dashed} here" if name in WRITTEN else did_you_mean(flag, known)
            return f"unknown argument{'s' if len(words) > 1 else ''} {' '.join(words)[:200]}{meant}"
        if message.startswith("the following arguments are required: "):
            missing = [name.rpartition(".")[2].upper() for name in message.partition(": ")[2].split(", ")]
            return f"{' and '.join(missing)} must be given"
        if message.startswith('expected "command"'):
            return "no command is given; --help lists all, and ttsnap generate PROMPT is where to begin"
        if found := re.match(r'Parser key "([\w.]+)":\s+Expected an? (.*)\. Got value: (.*)', message, re.S):
            flag, kind, value = found.groups()
            names = re.findall(r"'([^']*)'", kind) if "Literal" in kind else []
            if names:
                return unknown(f"--{flag.replace('_', '-')}", value, names)
            return f"--{flag.replace('_', '-')} must be {_IN_WORDS.get(kind, kind)}, got {value:.80}"
        if found := re.match(r'Parser key "([\w.]+)":.*Subtypes: \[(.*?)\]\n.*Given value: (.*)', message, re.S):
            flag, kinds, value = found.groups()
            words = [said for kind, said in _IN_WORDS.items() if kind in kinds]
            must = f"must be {' or '.join(words)}" if words else "cannot be read"
            return f"--{flag.replace('_', '-')} {must}, got {value:.80}"
        return message.replace("expected one argument", "a value has to follow")


_ELSEWHERE = ("-h", "--help-all", "--print_config", "--trust")
"""Options that the page of --help leaves to --help-all."""
_NO_SETTINGS = ("help", "help_all", "print_config", "config")
"""What the command line alone takes."""
MOST_OPTIONS, EXAMPLE_LINES = 18, 3
"""What fits on a page: of commands with more options it lists the common ones, and of the examples the first."""


def _whole_commands(lines: list[str], most: int) -> list[str]:
    """The first lines of examples, as many as fit, without a command that is cut off."""
    return lines if len(lines) <= most else lines[: max(i for i in range(most + 1) if not lines[i - 1].endswith("\\"))]


def _in_a_line(action: argparse.Action) -> argparse.Action:
    """The same option with as much of its help as fits beside it."""
    short = copy.copy(action)
    text = (action.help or "").split(" (default: ")[0]
    room = shutil.get_terminal_size().columns - 2 - COLUMN
    if len(text) > room:
        text = textwrap.shorten(text, room, placeholder=" ...")
    short.help, short.default = text, argparse.SUPPRESS
    return short


class _HelpAll(argparse.Action):
    """--help-all: the whole help, and the end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser._print_message(parser.format_help(), sys.stdout)
        parser.exit()


_IN_WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'list'>": "a list, as '[2, 6]'",
    "list[int]": "a list of whole numbers, as '[2, 6]'",
    "list[float]": "a list of numbers, as '[0.5, 0.25]'",
    "list[str]": "a list, as '[clip, hpsv2.1]'",
    "<class 'dict'>": "keys and values, as --call.clip_skip 1",
}


def new_parser(description: str, epilog: str | None = None) -> ArgumentParser:
    """An empty parser for a command, whose help looks so."""
    p = Parser(description=description, epilog=epilog, formatter_class=Formatter)
    p.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all options and exit")
    return p
