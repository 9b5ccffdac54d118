"""`ttsnap generate`: the best image for a prompt under a budget."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ttsnap.algorithms import make_algorithm
from ttsnap.cli import arguments, common
from ttsnap.cli.algorithms import listed
from ttsnap.cli.found import AlgorithmRun, compare, describe, tabulate, write_runs
from ttsnap.cli.help import Common
from ttsnap.cli.loading import CLOCK
from ttsnap.cli.parser import Arguments, Parser, new_parser
from ttsnap.cli.signals import StopOnSignal, left_by_sigterm
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Result
from ttsnap.files.pictured import digests
from ttsnap.loop.budget import Budget
from ttsnap.options.call import PictureOptions, VideoOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.option import values
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.request.provenance import Provenance
from ttsnap.request.spec import EngineSpec, reward_tuple

HELP = "find the best image for a prompt under a budget"
DESCRIPTION = """Find the best image for a prompt that a compute budget can buy.

examples:
  ttsnap generate "two red circles and a blue square" --budget 400nfe
  ttsnap generate "a red circle" --algorithm svdd --kernel sde --options.n 4
  ttsnap generate "a photo of a cat" --budget 20images \\
      --model stabilityai/stable-diffusion-3.5-medium --reward mine.py:score
  ttsnap generate --prompts-file prompts.txt --budget 200nfe --keep 4
  ttsnap generate "a blue circle" --task image-to-image --image red.png \\
      --strength 0.7
"""


def parser() -> Parser:
    """The command's arguments."""
    p = new_parser(DESCRIPTION, epilog=f"algorithms:\n{listed()}")
    arguments.add_config(p)
    make = p.add_argument_group("what to make")
    arguments.add_prompts(make)
    arguments.add_call(make, "negative_prompt", "height", "width")
    make.add_argument(
        "--keep", type=int, default=1, metavar="N", help=Common("how many of the best images to write, ranked")
    )
    arguments.add_options(make, SearchOptions, "seed")
    arguments.add_options(p.add_argument_group("pictures to start from"), PictureOptions)
    add_search(p.add_argument_group("search"))
    arguments.add_sampler(p.add_argument_group("sampler"))
    model = p.add_argument_group("model and memory")
    arguments.add_options(model, ModelOptions)
    arguments.add_options(model, BatchOptions)
    arguments.add_options(model, DeviceOptions)
    output = p.add_argument_group("output")
    output.add_argument(
        "--out", type=str | None, metavar="FOLDER", help=Common("where to write (default: a new folder in outputs/)")
    )
    output.add_argument("--overwrite", action="store_true", help="allow --out to hold files already")
    arguments.add_options(output, VideoOptions)
    output.add_argument(
        "--grid-intensity",
        type=float,
        default=458.0,
        metavar="GRAMS",
        help="of CO2e per kWh where the GPU is; the default is the world's (Ember 2025)",
    )
    return p


def add_search(p: Any) -> None:
    """What to search for, how, and how much to spend."""
    arguments.add_options(p, SearchOptions, "search")
    p.add_argument(
        "--options",
        type=arguments.Values,
        default={},
        metavar="JSON",
        help="the algorithm's own settings, as --options.n 16 --options.keep '[0.5, 0.25]'; which there are: ttsnap "
        "algorithms NAME",
    )
    arguments.add_options(p, SearchOptions, without=("search", "seed"))
    p.add_argument(
        "--compare",
        type=str | None,
        metavar="NAME",
        help="another algorithm, which searches with the same budget, reward and seeds afterwards; its results go to a "
        "folder of its name inside --out",
    )


class GeneratePlan(NamedTuple):
    """What is to be searched for, checked: texts, rewards as named, the algorithms by name, the budget, and how.
    pictures: arguments of the pipeline's call that are about them."""

    prompts: list[Prompt]
    reward: Any
    report: Any
    algorithms: dict[str, Algorithm]
    budget: Budget
    sampler: SamplerOptions
    batches: BatchOptions
    devices: DeviceOptions
    videos: VideoOptions
    pictures: dict[str, Any]


def run(a: Arguments) -> int:
    """Search, write what was found, and say what it took."""
    from ttsnap.results.folders import reserved

    # What can be refused is refused before the model is loaded.
    asked = _asked(a)
    name = Path(a.prompts_file).stem if a.prompts_file and len(asked.prompts) > 1 else asked.prompts[0].text
    with left_by_sigterm(), reserved(Path(a.out) if a.out else None, name, a.overwrite) as out:
        return _generate(a, asked, out)


def _asked(a: Arguments) -> GeneratePlan:
    """ValueError for what does not fit."""
    prompts = common.read_prompts(a, "generate", a.task)
    reward = common.require_reward(a)
    report = common.report_of(a)
    algorithms = {a.algorithm: make_algorithm(a.algorithm, **a.options)}
    if a.compare is not None:
        if a.compare in algorithms:
            raise ValueError(f"--compare {a.compare} is the algorithm itself; name another")
        algorithms[a.compare] = make_algorithm(a.compare)
    how = arguments.read(SamplerOptions, a), arguments.read(BatchOptions, a), arguments.read(DeviceOptions, a)
    videos = arguments.read(VideoOptions, a)
    if videos.video_format == "mp4":
        from ttsnap.results.media import require_av

        require_av("--video-format mp4")
    pictures = common.picture_arguments(a, prompts)
    texts, budget = common.canonical(prompts, a.model), common.budget_of(a)
    common.check_affordable(budget, {**common.call_arguments(a), **pictures})
    return GeneratePlan(texts, reward, report, algorithms, budget, *how, videos, pictures)


def _generate(a: Arguments, asked: GeneratePlan, out: Path) -> int:
    """Load, search, and write to `out`, which is reserved."""
    from ttsnap.results.folders import keep

    place, kind = common.placement(a.device, a.dtype)
    # Where others search, they load what they need themselves, and this process keeps off the devices.
    alone = common.alone(asked.devices, place.type)
    rewards = common.load_rewards(asked.reward, device=place) if alone else asked.reward
    metrics = common.load_rewards(asked.report, device=place) if asked.report else None
    call = {**common.call_arguments(a), **asked.pictures}
    shown = digests({**call, **asked.prompts[0].inputs})
    plain = {name: value for name, value in call.items() if name not in shown}
    model = replace(arguments.read(ModelOptions, a), dtype=str(kind).removeprefix("torch."))
    device, offload = (a.device, a.offload) if alone else ("cpu", "none")
    pipe = common.load_model(a.model, device, a.dtype, offload, a.lora, a.task)
    common.check_call(pipe, call, a.task)
    common.prepare_model(pipe, a)
    from ttsnap.pipelines.drafting.own_draft import drafting
    from ttsnap.pipelines.output import FewerImages  # loaded with the model
    from ttsnap.pipelines.settings import settings_of

    # How stock diffusers is called is told where that takes no pictures.
    stock = asked.sampler.stock and a.task == TEXT
    with StopOnSignal() as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore", FewerImages)  # said below, with each prompt
        runs: list[AlgorithmRun] = []
        for name, algorithm in asked.algorithms.items():
            if runs and stop():
                print(f"stopped before {name} ran", file=sys.stderr)
                break
            sampler = drafting(pipe, asked.sampler, algorithm, rewards, call)
            try:
                output = pipe(
                    prompt=asked.prompts,
                    search=algorithm,
                    reward=rewards,
                    report=metrics,
                    budget=asked.budget,
                    utility=a.utility,
                    seed=a.seed,
                    num_images_per_prompt=a.keep,
                    shared=a.shared,
                    should_stop=stop,
                    output_type="pt",
                    **values(asked.sampler),
                    **values(asked.batches),
                    **values(asked.devices),
                    **call,
                )
            except (ValueError, RuntimeError) as error:
                if not runs:
                    raise
                print(f"{name} did not run: {error}", file=sys.stderr)  # what was found before is written
                break
            options = a.options if name == a.algorithm else {}
            spec = EngineSpec(model, reward_tuple(asked.reward), sampler, call=call)
            made = Provenance(tuple(asked.prompts), spec, {"name": name, **options}, asked.budget)
            settings = {
                **settings_of(pipe, made),
                "reward": [r.name for r in rewards] if alone else _scored_by(output.search),
                "utility": a.utility,
                "seed": a.seed,
            }
            runs.append(AlgorithmRun(name, output.search, settings))
        try:
            where, written, failure = keep(out, lambda folder: write_runs(folder, runs, asked.videos))
        except OSError as error:  # what makes the images again is said all the same
            for index in range(len(asked.prompts)):
                describe(runs[0], index, [], plain, a, plain=stock)
            print(f"ttsnap: error: {error}", file=sys.stderr)
            return 1
    for index in range(len(asked.prompts)):
        describe(runs[0], index, written[0][index], plain, a, plain=stock)
        if len(runs) > 1:
            compare(runs, index, written)
    if len(asked.prompts) > 1:
        tabulate(where, runs)
    print(f"\ntrace in {where / 'trace.json'}; {CLOCK}")
    return common.exit_status(out, where, failure)


def _scored_by(results: Sequence[Result]) -> list[str]:
    """The names of the rewards."""
    return next((list(result.best.scores) for result in results if result.images), [])
