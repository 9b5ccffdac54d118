"""`ttsnap check`: what is here, and whether searches pay on a model, in minutes."""

from __future__ import annotations

import datetime
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments, common
from ttsnap.cli.common import load_libraries, resumable
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.core.prompt import Prompt
from ttsnap.files.settings import Positive, plain
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import EMBEDDED, PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import option
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.request.request import SearchRequest, prepare

if TYPE_CHECKING:
    from ttsnap.check.ladder import Setup
    from ttsnap.check.verdict import Verdict

DESCRIPTION = """Say what is here and what is wrong; with a model, measure whether searches pay on it.

Without a model: versions, the device and its memory, extras that are missing, and what a minute of the embedded model
buys. The exit status is 1 where something is broken.

With a model, a ladder that fits into --minutes; each rung is useful if it stops there, and the same command goes on:

  parity   whether the stock pipeline makes the winner again, in any batch
  cost     seconds of an evaluation by batch, a decode, a reward call; memory
  signal   how well early scores rank seeds, and what searches gain
  verdict  GO, NO-GO (the exit status is 1) or undecided, why, what to run

With --dry-run, nothing is loaded but the model's config.json files: what its parts, a row, a decode and a search take
of memory and FLOPs, and which cards that fits. All of it is on paper, and nothing is measured.

It writes MODEL_DEVICE_DATE.md and .json into --out, to be shown to others: figures, versions and
listed options; no prompt, path, address or message of an error.

examples:
  ttsnap check
  ttsnap check embedded --minutes 5
  ttsnap check stabilityai/stable-diffusion-3.5-medium --reward imagereward
  ttsnap check stabilityai/stable-diffusion-3.5-medium --dry-run
"""
SHARES = {"parity": 0.1, "cost": 0.3, "signal": 0.6}
"""Of the minutes, by rung; what one leaves, those after it may take."""
ABOUT = "about.json"
OWN = (
    "reward",
    "draft",
    "prompts_file",
    "negative_prompt",
    "call",
    "lora",
    "preview_vae",
)
"""Options whose values may be a user's own: evidence shows of them what comes with ttsnap."""
DRY_BUDGET = "16images"
"""Of the search that is priced on paper."""
WORLD_PROMPTS = 12
"""How many prompts of a packaged model's world, of kinds that few seeds get right."""


@dataclass(frozen=True)
class CheckOptions:
    """How much is checked."""

    dry_run: bool = option(
        False, "only say what it takes, by the model's config.json files", common=True
    )
    minutes: Positive = option(10.0, "that all of it may take, without loading", common=True)
    prompts_file: str | None = option(None, "other prompts than the packaged ones", metavar="FILE")
    out: str = option(
        "evidence", "where to write, and to go on from", metavar="FOLDER", common=True
    )


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    what = p.add_argument_group("what to check")
    what.add_argument(
        "model",
        type=str | None,
        nargs="?",
        default=None,
        metavar="MODEL",
        help=Common("a packaged model, a diffusers folder, or a hub id"),
    )
    arguments.add_options(what, SearchOptions, "reward")
    arguments.add_options(what, CheckOptions)
    arguments.add_call(what, "negative_prompt", "height", "width")
    arguments.add_sampler(p.add_argument_group("sampler"), recorded=True)
    model = p.add_argument_group("model and memory")
    arguments.add_options(model, ModelOptions, without=("model", "task"))
    arguments.add_options(model, BatchOptions, "batch_size", "decode_batch_size")
    return p


def run(a: Arguments) -> int:
    """Say what is here; then climb the ladder, where a model is named. 1 where something is broken,
    and for NO-GO."""
    if a.dry_run:
        return _dry_run(a)
    place, _ = common.opening().placement(a.device, a.dtype)
    load_libraries()
    from ttsnap.check.environment import environment

    search = None if a.model is not None else lambda: common.load_model(EMBEDDED, a.device, a.dtype)
    broken = environment(place, _say, search)
    print(
        "\n".join(
            ["", "wrong:", *(f"  {line}" for line in broken)]
            if broken
            else ["", "nothing is wrong"]
        )
    )
    return int(bool(broken)) if a.model is None else _climb(a, place)


def _say(line: str) -> None:
    print(line, flush=True)


def _dry_run(a: Arguments) -> int:
    """Say what a search takes on paper, and which cards it fits."""
    if a.model is None:
        raise ValueError("--dry-run is of a model: ttsnap check MODEL --dry-run")
    _, kind = common.opening().placement("gpu" if a.device == "auto" else a.device, a.dtype)
    load_libraries()
    from ttsnap.check.dry_run import REWARDS, lines, worked_out
    from ttsnap.files.reading import foreign
    from ttsnap.pipelines.model_defaults import defaults_of
    from ttsnap.pipelines.on_paper import on_paper
    from ttsnap.reward_models.registry import have_weights

    vars(a)["task"] = TEXT
    prompts = _prompts(a)[:1]
    engine = arguments.engine_spec(a, prompts, arguments.read(SamplerOptions, a).drafted_by(None))
    counted = [str(reward) for reward in engine.rewards if reward in REWARDS]
    unknown = have_weights([reward for reward in engine.rewards if reward not in REWARDS])
    pipe, networks = on_paper(a.model, kind)
    defaults = defaults_of(pipe)
    if counted or unknown or not (engine.rewards or defaults.reward):
        free = Arguments(**{**vars(a), "reward": "brightness"})  # which takes nothing
        engine = arguments.engine_spec(free, prompts, engine.sampler)
    request = SearchRequest(tuple(prompts), engine, "seed-pruning", Budget.parse(DRY_BUDGET))
    with foreign(f"cannot work out {a.model} on paper"):
        paper = worked_out(pipe, networks, prepare(request, defaults), a.model, counted)
    _say("\n".join(lines(paper)))
    if unknown:
        _say("without what other rewards take, which is not known on paper")
    words = ["ttsnap", "generate", "PROMPT", "--model", a.model, "--budget", DRY_BUDGET]
    words += _typed(a, "minutes", "prompts_file", "dry_run", "offload", "out")
    smallest = {card.offload: card.gb for card in reversed(paper.cards()) if card.offload}
    for offload, gb in smallest.items():
        option = [] if offload == "none" else ["--offload", offload]
        _say(f"\nfrom {gb} GB on\n\n    {shlex.join([*words, *option])}")
    return 0


def _climb(a: Arguments, place: Any) -> int:
    from ttsnap.check.environment import device_name
    from ttsnap.check.evidence import FORMAT
    from ttsnap.check.verdict import NO_GO, verdict
    from ttsnap.files.run_folder import json_folder
    from ttsnap.results.outputs import slug

    work = Path(a.out) / slug(a.model)
    with resumable(work):
        setup, settings = _setup(a, work)
        settings |= {"device": device_name(place), "format": FORMAT}
        with json_folder(work, ABOUT, "check", settings).opened():
            _climb_rungs(setup, time.monotonic() + 60 * a.minutes)
            judged = verdict(setup.found)
            page = _written(a, setup, settings, judged)
    _say(
        f"\n{judged.word}: {'; '.join(judged.why)}\n{page.with_suffix('.json')} and {page} are to"
        " be shown"
    )
    if judged.schedule:
        use = _use(a, a.model, setup.draft, judged.best)
        _say(f"{use} --algorithm {page.with_suffix('.schedule.json')}")
    return int(judged.word == NO_GO)


def _climb_rungs(setup: Setup, end: float) -> None:
    """Each rung within its share of the time that is left."""
    from ttsnap.check.cost import cost
    from ttsnap.check.parity import parity
    from ttsnap.check.signal import signal

    whole = 1.0
    for rung in (parity, cost, signal):
        name = rung.__name__
        within = SHARES[name] / whole * (end - time.monotonic())
        whole -= SHARES[name]
        _say(f"\n{name}, up to {within:.0f} s")
        _say("\n".join(f"  {line}" for line in setup.climb(name, rung, within).lines()))


def _written(a: Arguments, setup: Setup, settings: dict[str, Any], judged: Verdict) -> Path:
    """Write the evidence; the path of its page."""
    from ttsnap.check import evidence

    model = evidence.public_model(a.model)
    own = _public(a)
    about = {
        **settings,
        "date": datetime.date.today().isoformat(),
        "rewards": [evidence.public_spec(reward, "REWARD") for reward in settings["rewards"]],
        "command": shlex.join(["ttsnap", "check", model, *_typed(own, "out")]),
        "use": _use(own, model, evidence.public_spec(setup.draft, "DRAFT"), judged.best),
    }
    return evidence.write(Path(a.out), about, setup.found, judged, setup.out / "sheet.png")


def _setup(a: Arguments, work: Path) -> tuple[Setup, dict[str, Any]]:
    """What is checked, loaded, and the settings that must be the same to go on. ValueError for what
    does not fit."""
    vars(a)["task"] = TEXT
    prompts = _prompts(a)
    draft = arguments.read(SamplerOptions, a)
    if draft.variety is not None:
        raise ValueError(
            f"a check is of the model's seeds as they are, got {a.variety}; leave --variety out"
        )
    engine = arguments.engine_spec(a, prompts, draft.drafted_by(None))
    search = common.prepared(SearchRequest(tuple(prompts), engine, "keep-all", Budget()))
    rewards = [str(reward) for reward in search.engine.rewards]
    right = _right(a)
    judges = [] if right is None or right in rewards else [right]
    pipe, loaded = common.loaded(search, DeviceOptions(), *judges)
    _, kind = common.opening().placement(a.device, a.dtype)
    pipe.set_progress_bar_config(disable=True)
    from ttsnap.check.ladder import Setup
    from ttsnap.pipelines.drafting.own_draft import own_draft
    from ttsnap.version import versions

    own = own_draft(pipe)
    spec = search.engine
    named = draft.draft if not draft.left_open else own.name if own is not None else None
    about = {
        "model": a.model,
        "dtype": str(kind).removeprefix("torch."),
        "prompts": [prompt.text for prompt in search.prompts],
        "rewards": [*rewards, *judges],
        "draft": named,
        "call": plain(dict(spec.call)),
        "versions": versions("torch", "diffusers", "transformers"),
    }
    setup = Setup(
        pipe, spec, tuple(search.prompts), work, named, bool(judges), _say, loaded.scoring
    )
    return setup, about


def _right(a: Arguments) -> str | None:
    """The reward that says whether an image of a packaged model is right."""
    from ttsnap.pipelines.packaged import MODELS

    return MODELS[a.model].right.reward if a.model in MODELS else None


def _prompts(a: Arguments) -> list[Prompt]:
    """Of the file, of the packaged model's world, or those that come with the command."""
    if a.prompts_file is None and a.model in PACKAGED:
        from ttsnap.pipelines.packaged import MODELS

        world = MODELS[a.model].world
        return [
            Prompt(text)
            for text in world.sample_prompts(WORLD_PROMPTS, seed=15, kinds=world.HARD_KINDS)
        ]
    import ttsnap.check

    file = a.prompts_file or str(Path(ttsnap.check.__file__).with_name("prompts.txt"))
    return arguments.read_prompts(Arguments(**{**vars(a), "prompts_file": file}), "check")


def _typed(a: Arguments, *without: str) -> list[str]:
    """The options that are not at their defaults, as one types them."""
    words: list[str] = []
    for name, action in parser().settings().items():
        value = a.get(name)
        if action.option_strings and name not in without and value != action.default:
            typed = json.dumps(value) if isinstance(value, dict | list) else str(value)
            words += [action.option_strings[0], *([] if value is True else [typed])]
    return words


def _public(a: Arguments) -> Arguments:
    """The same, with what is a user's own replaced by what it is called in the help."""
    from ttsnap.check.evidence import public_spec

    settings = parser().settings()
    typed = {name: a.get(name) for name in OWN if a.get(name) != settings[name].default}
    public = {name: public_spec(each, str(settings[name].metavar)) for name, each in typed.items()}
    return Arguments(**{**vars(a), **public})


def _use(a: Arguments, model: str, draft: str | None, best: str | None) -> str:
    """The command of the search that measured best; best-of-N's where none is better."""
    from ttsnap.check.signal import FINISHED, PRUNING

    words = ["ttsnap", "generate", "PROMPT", "--model", model, "--budget", "4images"]
    words += _typed(a, "out", "minutes", "prompts_file", "draft", "finish")
    if best in (None, PRUNING):
        return shlex.join(
            [*words, "--draft", "none", *([] if best else ["--algorithm", "best-of-n"])]
        )
    finish = "noise" if best != FINISHED else "draft" if a.finish == "auto" else str(a.finish)
    return shlex.join([*words, "--draft", str(draft), "--finish", finish])
