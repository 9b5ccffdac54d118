"""The command line: one module for each command, which imports nothing heavy before it is needed.

A command's module has `parser()` and `run(arguments)`. `run` returns the exit status and raises
ValueError for bad input. A new command is one file and one entry of COMMANDS.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ttsnap.cli.common import CLOCK, Interrupted, check_names, speaks
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory, shortage
from ttsnap.core.names import unknown
from ttsnap.files.reading import printable
from ttsnap.rewards.reward_model import RewardError
from ttsnap.version import __version__


@dataclass(frozen=True)
class Command:
    """A command. Its module is imported when it is asked for."""

    name: str
    help: str
    """In one line."""

    @property
    def _module(self) -> Any:
        return import_module(f"ttsnap.cli.{self.name.replace('-', '_')}")

    def parser(self) -> Parser:
        """The parser of its arguments, made without importing torch."""
        parser: Parser = self._module.parser()
        return parser

    def run(self, a: Arguments) -> int:
        """Run the command; the exit status."""
        return int(self._module.run(a))


COMMANDS = {
    name: Command(name, text)
    for name, text in {
        "generate": "find the best image for a prompt under a budget",
        "replay": "make images again, each from its PNG",
        "algorithms": "list the search algorithms, or the options of one",
        "check": "say what is here, and in minutes whether searches pay on a model",
        "serve": "serve image generation over HTTP, as OpenAI's images API",
        "demo": "open a web page to run searches on and watch them",
        "record": "keep the scores of many seeds, to study searches on",
        "simulate": "compare policies over a recording, in seconds",
        "tune": "fit a pruning schedule, or prices of compute, to a recording",
        "bench": "run a prompt set by several algorithms at equal budgets",
        "score": "rank the images of a folder by a reward",
        "distill": "train a noise-aware reward on recordings with images",
        "distill-draft": "train a draft LoRA, which guesses early what each seed becomes",
        "serve-reward": "serve a reward over HTTP, to other machines too",
    }.items()
}


def build_parser() -> Parser:
    """The parser that lists all commands, made without importing torch."""
    parser = Parser(
        "Better images from frozen text-to-image models, by spending inference compute on purpose."
    )
    parser.prog = "ttsnap"
    parser.add_argument(
        "--version",
        action="version",
        version=f"ttsnap {__version__}",
        help="print version and exit",
    )
    commands = parser.add_subparsers(
        title="commands",
        metavar="COMMAND",
        description="ttsnap COMMAND --help is a page about one, --help-all lists all options.",
        parser_class=argparse.ArgumentParser,
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


def parse(argv: Sequence[str]) -> tuple[Command, Arguments]:
    """The command and its arguments. ValueError for what a configuration may not say."""
    name = argv[0] if argv else ""
    if name in COMMANDS:
        parser = COMMANDS[name].parser()
        parser.prog = f"ttsnap {name}"
        return COMMANDS[name], parser.parse_args(argv[1:])
    parser = build_parser()
    if name.startswith("-"):
        parser.parse_args(argv)  # --help, --version
    elif name:
        parser.error(unknown("command", name, COMMANDS))
    parser.error(
        "no command is given; --help lists all, and ttsnap generate PROMPT is where to begin"
    )


def short_of_memory(error: Exception, arguments: Arguments) -> str:
    """A lack of memory in a sentence, with what the command has against it."""
    # in RAM, where none of these helps
    if not isinstance(error, NotEnoughMemoryError | RuntimeError):
        return f"not enough memory: {error}".rstrip(": ")
    ways = {"none": ["--offload model"], "model": ["--offload group"]}.get(
        arguments.get("offload"), []
    )
    ways += ["--decode-batch-size 1"] if arguments.get("decode_batch_size", 1) != 1 else []
    ways += ["a smaller or quantised model"] if "model" in arguments else []
    what = str(error) if isinstance(error, NotEnoughMemoryError) else shortage(error)
    return f"not enough memory: {what}" + ("; try " + " or ".join(ways) if ways else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status, 2 after one line of explanation for bad input, 128 +
    the signal's number after a signal."""
    CLOCK.start()
    if argv is None:  # a program: at its end nothing is searched for garbage, which takes seconds
        atexit.register(gc.freeze)
    arguments = Arguments()
    try:
        command, arguments = parse(sys.argv[1:] if argv is None else argv)
        check_names(arguments)
        return command.run(arguments)
    except (ValueError, OSError) as error:
        print(f"ttsnap: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except RewardError as error:
        print(f"ttsnap: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not lacks_memory(error):  # a mistake of ours: a traceback
            raise
        print(f"ttsnap: error: {printable(short_of_memory(error, arguments))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if speaks():
            print(f"\n{str(stopped) or 'interrupted'}", file=sys.stderr)
        return 128 + stopped.number if isinstance(stopped, Interrupted) else 130
