"""How help looks: a short usage, options in groups, defaults only where they say something, 80 columns."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

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


def new_parser(description: str, epilog: str | None = None) -> ArgumentParser:
    """An empty parser for a command, whose help looks so."""
    return ArgumentParser(description=description, epilog=epilog, formatter_class=Formatter)
