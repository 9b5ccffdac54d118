"""Arguments that several commands share. `p` is a parser, or a group of one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args

from ttsnap.cli.configs import presets_in
from ttsnap.cli.parser import Arguments, Common
from ttsnap.core.checklist import rewards_of
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.call import WRITTEN, PictureOptions, pictured_call
from ttsnap.options.engine import BatchOptions, EngineOptions, Kept
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import Option, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions, listed
from ttsnap.request.request import EngineSpec, SearchRequest

if TYPE_CHECKING:
    from ttsnap.bench.prompts import PromptRecord

SETTINGS = "YAML or JSON file of settings, named as these options; what is typed wins over it"
REWARD_HELP = next(option.help for option in options_of(SearchOptions) if option.name == "reward")
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
        type=str,
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
    marked = Common if option.common else str
    text = option.help
    kind = option.written
    if kind is bool and "." in option.name:
        text = f"true or false: {text}"
    elif kind is bool:
        p.add_argument(option.dashed, action="store_true", help=marked(text))
        return
    if start is not None:
        text = text.removesuffix(f" (default: {option.unset})")
        if type(None) in get_args(kind):
            kind = Union[tuple(each for each in get_args(kind) if each is not type(None))]  # noqa: UP007
    default = option.start if start is None else start
    default = option.default if default is None else default
    words = kind == tuple[str, ...]
    how = {"nargs": "+", "type": str} if words else {"type": kind}
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


def read_prompts(a: Arguments, command: str, task: str = TEXT) -> list[Prompt]:
    """The prompts given and those of the set in the file; where the task takes pictures, with those
    that the set names. ValueError for what is no set, no prompt, or an empty one."""
    prompts = [Prompt(text) for text in a.get("prompts", [])]
    if a.prompts_file is not None:
        from ttsnap.bench.prompts import read_prompt_set

        prompts += with_pictures(
            read_prompt_set(Path(a.prompts_file)).prompts, Path(a.prompts_file), task
        )
    if not prompts:
        raise ValueError(f'no prompt: ttsnap {command} "a red circle", or --prompts-file FILE')
    if any(not prompt.text.strip() for prompt in prompts):
        raise ValueError(
            f"prompt {[p.text.strip() for p in prompts].index('') + 1} of {len(prompts)} is empty"
        )
    return prompts


def with_pictures(entries: Sequence[PromptRecord], file: Path, task: str) -> list[Prompt]:
    """The prompts of these entries of a set; where the task takes pictures, with those that the set
    names, from the folder that it lies in. ValueError for names that are none, and files that are
    no pictures."""
    if task == TEXT:
        return [Prompt(entry.text) for entry in entries]
    from ttsnap.bench.pictures import pictured

    return pictured(entries, file if file.is_dir() else file.parent)


def report_of(a: Arguments) -> Any:
    """--report as given, or what a packaged model reports beside the reward by which it is
    searched; else None."""
    if a.report or a.reward is not None or a.model not in PACKAGED:
        return a.report or None
    from ttsnap.pipelines.packaged import MODELS

    return MODELS[a.model].report


def engine_spec(
    a: Arguments, prompts: Sequence[Prompt], sampler: SamplerOptions, keep: Sequence[Kept] = ()
) -> EngineSpec:
    """The engine that is asked for. keep: as in EngineOptions. ValueError for pictures that do not
    fit."""
    from ttsnap.reward_models.registry import refuse_credentials

    refuse_credentials(a.reward)  # before it is written into a file
    written = {name: a[option.flag] for name, option in WRITTEN.items()}
    call = {name: value for name, value in written.items() if value is not None}
    call |= pictured_call(a.call) | _picture_arguments(a, prompts)
    batch = EngineOptions.of(read(BatchOptions, a), keep)
    rewards = rewards_of(a.reward, listed(a.get("check")), a.get("tie"))
    return EngineSpec(read(ModelOptions, a), rewards, sampler, batch, call)


def request(
    a: Arguments, prompts: Sequence[Prompt], search: Any, engine: EngineSpec
) -> SearchRequest:
    """What a command that searches is asked for: by its options, those that it has."""
    return SearchRequest(
        tuple(prompts),
        engine,
        search,
        budget_of(a),
        a.seed,
        a.get("keep", 1),
        a.get("options", {}),
        a.shared,
        replace(read(SelectionOptions, a), report=report_of(a)),
    )


def _picture_arguments(a: Arguments, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Pictures for all prompts, and strength, by argument of the pipeline's call.

    ValueError for files that are no pictures, where some prompts have other kinds of pictures than
    others, and where there are pictures for all prompts as well.
    """
    options = read(PictureOptions, a)
    for_all = options.read(a.task)
    kinds = list(dict.fromkeys(", ".join(prompt.inputs) or "no picture" for prompt in prompts))
    if len(kinds) > 1:
        raise ValueError(
            f"some prompts have {kinds[0]} and others {kinds[1]}; give all the same kinds of"
            " pictures"
        )
    if twice := sorted(for_all.keys() & prompts[0].inputs.keys()):
        raise ValueError(
            f"{twice} for all prompts, and one of its own for each in {a.prompts_file}; leave"
            " one out"
        )
    strength = {} if options.strength is None else {"strength": options.strength}
    return {**for_all, **strength}


def budget_of(a: Arguments) -> Budget:
    """--budget or --effort, the medium one without either. ValueError for both, or one that cannot
    be read."""
    return Budget.parse(a.budget, "medium" if a.budget is None and a.effort is None else a.effort)
