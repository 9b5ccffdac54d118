"""Arguments that several commands share. `p` is a parser, or a group of one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from ttsnap.cli.configs import presets_in
from ttsnap.cli.help import Common
from ttsnap.cli.parser import Arguments
from ttsnap.options.call import WRITTEN
from ttsnap.options.option import Option, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions

SETTINGS = (
    "YAML or JSON file of settings (- is standard input), named as these options; what is typed"
    " wins over it"
)
REWARD = next(option.help for option in options_of(SearchOptions) if option.name == "reward")
Values = dict[str, Any]
"""Options by name."""
T = TypeVar("T")


def add_config(p: Any) -> None:
    """--config, --print_config and --trust."""
    p.add_argument("--config", metavar="FILE", help=SETTINGS)
    p.add_argument(
        "--print_config",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print all settings in the form that --config reads, and exit",
    )
    p.add_argument(
        "--trust",
        action="store_true",
        help="use the code, models, addresses and files elsewhere that --config names",
    )


def add_preset(p: Any, presets: Path, text: str) -> None:
    """--preset. presets: a folder of files of settings, as --config reads them."""
    p.presets = presets
    names = ", ".join(presets_in(presets))
    p.add_argument("--preset", type=str | None, metavar="NAME", help=Common(f"{text}: {names}"))


def add_prompts(p: Any) -> None:
    """prompts, --prompts-file."""
    # With any other default, no prompts on the command line would count as a choice and override
    # those of --config.
    p.add_argument(
        "prompts",
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="PROMPT",
        help="one or more prompts, each quoted",
    )
    p.add_argument(
        "--prompts-file",
        type=str | None,
        metavar="FILE",
        help=Common(
            "a prompt set: text with a prompt a line, where # starts a comment, or any that ttsnap"
            " bench reads"
        ),
    )


def add_options(
    p: Any, kind: type[Any], *names: str, without: Iterable[str] = (), **starts: Any
) -> None:
    """Add the options that a class declares: all that can be written, or those of `names`,
    `without` some. Each section is a group.

    starts: defaults other than the declared ones. An option with such a default takes no null.
    """
    groups = {"": p}
    for option in _written(kind):
        section = option.name.rpartition(".")[0]
        if option.name not in without and (not names or option.name in names):
            groups[section] = (
                groups[section] if section in groups else p.add_argument_group(section)
            )
            add_option(groups[section], option, starts.get(option.name))


def add_option(p: Any, option: Option, start: Any = None) -> None:
    """Add one option. start: its default, where it is not the declared one. Of sections true and
    false are written out."""
    marked, text, kind = Common if option.common else str, option.help, option.written
    if kind is bool and "." in option.name:
        text = f"true or false: {text}"
    elif kind is bool:
        p.add_argument(option.dashed, action="store_true", help=marked(text))
        return
    if start is not None:
        text = text.removesuffix(f" (default: {option.unset})")
        kind = Union[tuple(each for each in get_args(kind) if each is not type(None))]  # noqa: UP007
    default = option.start if start is None else start
    default = option.default if default is None else default
    listed = option.many and get_origin(kind) is tuple
    how = {"nargs": "+", "type": get_args(kind)[0]} if listed else {"type": kind}
    p.add_argument(option.dashed, default=default, metavar=option.metavar, help=marked(text), **how)


def add_call(p: Any, *names: str) -> None:
    """Add options for these arguments of the pipeline's call."""
    for name in names:
        add_option(p, WRITTEN[name])


def add_sampler(p: Any, *, recorded: bool = False) -> None:
    """Add steps, guidance, the sampler and --call. recorded: only what `ttsnap record` has."""
    add_call(p, "num_inference_steps", "guidance_scale")
    add_options(p, SamplerOptions, without=unrecorded(SamplerOptions) if recorded else ())
    p.add_argument(
        "--call",
        type=Values,
        default={},
        metavar="JSON",
        help=(
            "more arguments of the pipeline's call by name, as --call.clip_skip 1 or, of pictures, "
            "--call.ip_adapter_image face.png"
        ),
    )


def unrecorded(kind: type[Any]) -> list[str]:
    """The names of options that `ttsnap record` does not have."""
    return [option.name for option in options_of(kind) if not option.recorded]


def _written(kind: type[Any]) -> list[Option]:
    """The options that can be written in a shell."""
    return [option for option in options_of(kind) if option.written is not None]


def read(kind: type[T], a: Arguments) -> T:
    """The settings of a class as they were given; those that the command does not have are at their
    defaults."""
    return kind(**{option.name: a[option.flag] for option in _written(kind) if option.flag in a})
