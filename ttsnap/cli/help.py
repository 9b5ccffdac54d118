"""The looks of help: a short usage, options in groups, defaults only where they say something, 80
columns."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any, get_origin

from ttsnap.files.settings import kinds_of

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
    made = parser._get_formatter()
    made.add_text(first.split("\n\n")[0])
    if examples:
        lines = examples[0].rstrip().splitlines()
        if len(lines) > EXAMPLE_LINES:  # whole commands alone: none ends in a backslash
            lines = lines[
                : max(i for i in range(EXAMPLE_LINES + 1) if not lines[i - 1].endswith("\\"))
            ]
        made.add_text("examples:\n" + "\n".join(lines))
    made.start_section("options")
    made.add_arguments(
        [_in_a_line(a) for a in parser._actions if not a.option_strings or a in options]
    )
    made.end_section()
    made.add_text(f"{parser.prog} --help-all tells more, and lists all of its options.")
    usage = whole.partition("\n\n")[0]
    return f"{usage}\n\n{made.format_help()}"


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
