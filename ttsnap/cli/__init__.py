"""The command line. No logic of its own, and nothing heavy before it is needed.

Each command is a module with `HELP` (one line), `parser()` and `run(arguments)`, which returns the exit status and
raises ValueError for bad input. A new command is one file and one entry of COMMANDS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from jsonargparse import ArgumentParser, Namespace

from ttsnap.cli import (
    algorithms,
    bench,
    calibrate,
    demo,
    distill,
    distill_draft,
    doctor,
    evaluate,
    evaluate_draft,
    generate,
    record,
    replay,
    score,
    serve,
    serve_reward,
    simulate,
    tune,
)
from ttsnap.cli.common import check_names
from ttsnap.cli.configs import refuse_nulls
from ttsnap.cli.help import Formatter, Parser
from ttsnap.cli.loading import CLOCK
from ttsnap.files.reading import printable
from ttsnap.rewards.registry import RewardError
from ttsnap.version import __version__


class Command(Protocol):
    """What a command's module offers."""

    HELP: str

    def parser(self) -> ArgumentParser:
        """Its arguments, made without importing torch."""

    def run(self, a: Namespace) -> int:
        """Do it; the exit status."""


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "replay": replay,
    "algorithms": algorithms,
    "doctor": doctor,
    "serve": serve,
    "demo": demo,
    "record": record,
    "simulate": simulate,
    "tune": tune,
    "calibrate": calibrate,
    "bench": bench,
    "score": score,
    "distill": distill,
    "distill-draft": distill_draft,
    "evaluate": evaluate,
    "evaluate-draft": evaluate_draft,
    "serve-reward": serve_reward,
}


def build_parser() -> ArgumentParser:
    """The whole command line, without importing torch."""
    parser = Parser(
        prog="ttsnap",
        version=__version__,
        formatter_class=Formatter,
        allow_abbrev=False,  # ConfigFile looks for options by their names
        description="Better images from frozen text-to-image models, by spending inference compute on purpose.",
    )
    commands = parser.add_subcommands(
        required=True,
        dest="command",
        title="commands",
        description="ttsnap COMMAND --help is a page about one, --help-all tells all.",
    )
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, command.parser(), help=command.HELP)
    return parser


def config_first(argv: Sequence[str]) -> list[str]:
    """The arguments with --config FILE right behind the command, so that all others win over it wherever they stand."""
    words = list(argv)
    config: list[str] = []
    end = words.index("--") if "--" in words else len(words)  # behind it are prompts
    for at in range(end - 1, 0, -1):
        if words[at].startswith("--config="):
            config = [words.pop(at), *config]
        elif words[at] == "--config":
            config = [*words[at : at + 2], *config]
            del words[at : at + 2]
    return [*words[:1], *config, *words[1:]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 with one line of explanation for bad input, 130 when interrupted by Ctrl-C."""
    CLOCK.start()
    words = config_first(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(words, env=False)
        command, given = COMMANDS[arguments.command], arguments[arguments.command]
        refuse_nulls(given, command.parser().get_defaults())
        check_names(given)
        return command.run(given)
    except (ValueError, OSError, MemoryError) as error:
        # What was asked for, or what a file holds, cannot be done. Anything else is a mistake of ours: a traceback.
        said = f"not enough memory: {error}".rstrip(": ") if isinstance(error, MemoryError) else str(error)
        print(f"ttsnap: error: {printable(said)}", file=sys.stderr)
        return 2
    except RewardError as error:
        print(f"ttsnap: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nttsnap: interrupted", file=sys.stderr)
        return 130
