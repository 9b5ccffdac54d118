"""How help looks: a short usage, options in groups, defaults only where they say something, 80 columns."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import textwrap

COLUMN = 26


class Common(str):
    """The help of an option that most people need: the page of --help has it, others are in --help-all."""


def page(parser: argparse.ArgumentParser) -> str:
    """The help that --help prints: usage, what the command is for, an example or two, and the options that most people
    need. The whole one for a parser with commands."""
    whole = parser.format_help()
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        return whole
    options = [a for a in parser._actions if a.option_strings and a.option_strings[0] not in _ELSEWHERE]
    if len(options) > MOST_OPTIONS:
        options = [action for action in options if isinstance(action.help, Common)]
    first, *examples = re.split(r"^examples?:\n", parser.description or "", flags=re.M)
    made = parser._get_formatter()
    made.add_text(first.split("\n\n")[0])
    if examples:
        made.add_text("examples:\n" + "\n".join(_whole_commands(examples[0].rstrip().splitlines(), EXAMPLE_LINES)))
    made.start_section("options")
    made.add_arguments([_in_a_line(a) for a in parser._actions if not a.option_strings or a in options])
    made.end_section()
    made.add_text(f"{parser.prog} --help-all tells more, and lists all of its options.")
    usage = whole.partition("\n\n")[0]
    return f"{usage}\n\n{made.format_help()}"


_ELSEWHERE = ("-h", "--help-all", "--print_config", "--trust")
"""Options that the page of --help leaves to --help-all."""
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
