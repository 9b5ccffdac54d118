"""Arguments that several commands share. `p` is a parser, or a group of one."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from jsonargparse import Namespace

from ttsnap.cli.configs import ConfigFile
from ttsnap.cli.help import Common
from ttsnap.options.call import WRITTEN
from ttsnap.options.option import Option, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions

SETTINGS = "YAML or JSON file of settings (- is standard input), named as these options; what is typed wins over it"
REWARD = next(option.help for option in options_of(SearchOptions) if option.name == "reward")
Values = dict[str, bool | int | float | list | dict | str | None]  # type: ignore[type-arg]
"""Options by name. Not Any, in which the parser reads texts a second time, imports what they name, and takes what looks
like a mapping, "photo: a cat", for one."""
T = TypeVar("T")


def add_config(p: Any) -> None:
    """--config, and with it jsonargparse's --print_config."""
    p.add_argument("--config", action=ConfigFile, metavar="FILE", help=SETTINGS)
    p.add_argument(
        "--trust", action="store_true", help="use the code, models, addresses and files elsewhere that --config names"
    )


def add_prompts(p: Any) -> None:
    """prompts, --prompts-file."""
    from argparse import SUPPRESS

    # With any other default, no prompts on the command line would count as a choice and override those of --config.
    p.add_argument("prompts", nargs="*", default=SUPPRESS, metavar="PROMPT", help="one or more prompts, each quoted")
    p.add_argument(
        "--prompts-file",
        type=str | None,
        metavar="FILE",
        help=Common(
            "a prompt set: text with a prompt a line, where # starts a comment, or any that ttsnap bench reads"
        ),
    )


def add_options(p: Any, kind: type[Any], *names: str, without: Iterable[str] = (), **starts: Any) -> None:
    """The options that a class declares: all that can be written, or those of these names; without some.

    starts: defaults other than the declared ones. An option whose default is a value takes no null.
    """
    for option in _written(kind):
        if option.name not in without and (not names or option.name in names):
            add_option(p, option, starts.get(option.name))


def add_option(p: Any, option: Option, start: Any = None) -> None:
    """One option; start: its default, where it is another than the declared one."""
    marked = Common if option.common else str
    if option.written is bool:
        p.add_argument(option.dashed, action="store_true", help=marked(option.help))
        return
    unset, kind = option.help, typing._strip_annotations(option.written)  # type: ignore[attr-defined]
    if start is not None:
        unset = option.help.removesuffix(f" (default: {option.unset})")
        kind = typing.Union[tuple(k for k in typing.get_args(kind) if k is not type(None))]  # noqa: UP007
    default = option.start if start is None else start
    default = option.default if default is None else default
    p.add_argument(option.dashed, type=kind, default=default, metavar=option.metavar, help=marked(unset))


def add_call(p: Any, *names: str) -> None:
    """Options for these arguments of the pipeline's call."""
    for name in names:
        add_option(p, WRITTEN[name])


def add_sampler(p: Any, *, recorded: bool = False) -> None:
    """Steps, guidance, the sampler and --call. recorded: only what `ttsnap record` has."""
    add_call(p, "num_inference_steps", "guidance_scale")
    add_options(p, SamplerOptions, without=unrecorded(SamplerOptions) if recorded else ())
    p.add_argument(
        "--call",
        type=Values,
        default={},
        metavar="JSON",
        help="more arguments of the pipeline's call, as --call.clip_skip 1",
    )


def unrecorded(kind: type[Any]) -> list[str]:
    """The names of options that `ttsnap record` does not have."""
    return [option.name for option in options_of(kind) if not option.recorded]


def _written(kind: type[Any]) -> list[Option]:
    """Options that can be written."""
    return [option for option in options_of(kind) if option.written is not None]


def read(kind: type[T], a: Namespace) -> T:
    """What was given for the options that a class declares; those that the command does not have at their defaults."""
    return kind(**{option.name: a[option.flag] for option in _written(kind) if option.flag in a})


def written_type(kind: Any) -> Any:
    """Types as jsonargparse takes them: mappings as dictionaries, tuples as lists."""
    kind = typing._strip_annotations(kind)  # type: ignore[attr-defined]
    plain_types = {
        "collections.abc.Mapping[str, typing.Any] | None": Values | None,
        "collections.abc.Mapping[str, typing.Any]": Values,
        "tuple[int, ...] | None": list[int] | None,
        "tuple[float, ...] | None": list[float] | None,
        "tuple[str, ...]": list[str],
        "tuple[typing.Literal['trackio', 'tensorboard', 'wandb'], ...]": list[str],
    }
    return plain_types.get(str(kind), kind)
