"""`ttsnap generate`: the best image for a prompt under a budget."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.algorithms import own_algorithm
from ttsnap.cli import arguments, common
from ttsnap.cli.algorithms import listed
from ttsnap.cli.found import describe, tabulate, write_runs
from ttsnap.cli.help import Common
from ttsnap.cli.loading import CLOCK
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.cli.signals import StopOnSignal, left_by_signals
from ttsnap.options.call import PictureOptions, VideoOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.request import Prepared, prepare

if TYPE_CHECKING:
    from ttsnap.pipelines.run import LoadedRewards, SearchOutcome

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
    p = Parser(DESCRIPTION, epilog=f"algorithms:\n{listed()}")
    arguments.add_config(p)
    make = p.add_argument_group("what to make")
    arguments.add_prompts(make)
    arguments.add_call(make, "negative_prompt", "height", "width")
    make.add_argument(
        "--keep",
        type=int,
        default=1,
        metavar="N",
        help=Common("how many of the best images to write, ranked"),
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
        "--out",
        type=str | None,
        metavar="FOLDER",
        help=Common("where to write (default: a new folder in outputs/)"),
    )
    output.add_argument(
        "--overwrite", action="store_true", help="allow --out to hold files already"
    )
    arguments.add_options(output, VideoOptions)
    return p


def add_search(p: Any) -> None:
    """What to search for, how, and how much to spend."""
    arguments.add_options(p, SearchOptions, "search")
    p.add_argument(
        "--options",
        type=arguments.Values,
        default={},
        metavar="JSON",
        help=(
            "the algorithm's own settings, as --options.n 16 --options.keep '[0.5, 0.25]'; which"
            " there are: ttsnap algorithms NAME"
        ),
    )
    arguments.add_options(p, SearchOptions, without=("search", "seed"))
    arguments.add_options(p, SelectionOptions)
    p.add_argument(
        "--compare",
        type=str | None,
        metavar="NAME",
        help=(
            "another algorithm, which searches with the same budget, reward and seeds afterwards;"
            " its results go to a folder of its name inside --out"
        ),
    )


def run(a: Arguments) -> int:
    """Search, write what was found, and say what it took."""
    from ttsnap.results.folders import reserved

    # What can be refused is refused before the model is loaded.
    searches = _searches(a)
    videos = arguments.read(VideoOptions, a)
    if videos.video_format == "mp4":
        from ttsnap.results.media import require_av

        require_av("--video-format mp4")
    prompts = searches[a.algorithm].prompts
    name = Path(a.prompts_file).stem if a.prompts_file and len(prompts) > 1 else prompts[0].text
    with left_by_signals(), reserved(Path(a.out) if a.out else None, name, a.overwrite) as out:
        return _generate(a, searches, videos, out)


def _searches(a: Arguments) -> dict[str, Prepared]:
    """The searches by the names of their algorithms, that of --algorithm first. ValueError for what
    does not fit."""
    prompts = arguments.read_prompts(a, "generate", a.task)
    if a.compare == a.algorithm:
        raise ValueError(f"--compare {a.compare} is the algorithm itself; name another")
    engine = arguments.engine_spec(a, prompts, arguments.read(SamplerOptions, a))
    first = arguments.asked(a, prompts, own_algorithm(a.algorithm), engine)
    asked = {a.algorithm: first}
    if a.compare:
        asked[a.compare] = first.by(own_algorithm(a.compare))
    searches = {name: common.prepared(request) for name, request in asked.items()}
    common.check_affordable(searches[a.algorithm])
    return searches


def _searched(
    searches: Mapping[str, Prepared],
    pipe: Any,
    devices: DeviceOptions,
    rewards: LoadedRewards,
    stop: Callable[[], bool],
) -> dict[str, SearchOutcome]:
    """What each search found. One that fails after others ends them all, and is told of: what was
    found before is written."""
    from ttsnap.pipelines.run import decisions_of, run

    runs: dict[str, SearchOutcome] = {}
    for name, search in searches.items():
        if runs and stop():
            print(f"stopped before {name} ran", file=sys.stderr)
            break
        try:
            # what was left to the model
            asked = prepare(search.request, decisions_of(pipe))
            runs[name] = run(asked, pipe, devices, should_stop=stop, loaded=rewards)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not runs:
                raise
            print(f"{name} did not run: {error}", file=sys.stderr)
            break
    return runs


def _generate(
    a: Arguments, searches: Mapping[str, Prepared], videos: VideoOptions, out: Path
) -> int:
    """Load, search, and write to `out`, which is reserved."""
    devices = arguments.read(DeviceOptions, a)
    first = searches[a.algorithm]
    pipe, rewards = common.loaded(first, devices)
    from ttsnap.pipelines import recommended  # loaded with the model
    from ttsnap.pipelines.packaged import showcase_of

    # How stock diffusers is called is told where that takes no pictures.
    stock = first.engine.sampler.stock and a.task == TEXT
    with StopOnSignal() as stop:
        runs = _searched(searches, pipe, devices, rewards, stop)
        count = len(first.prompts)
        ours = runs[a.algorithm]
        try:
            written = write_runs(out, runs, videos)
        except OSError as error:  # what makes the images again is said all the same
            for index in range(count):
                describe(ours, index, [], a, plain=stock)
            print(
                f"ttsnap: error: cannot write to {out}: {error.strerror or error}", file=sys.stderr
            )
            return 1
    for index in range(count):
        describe(ours, index, written[0][index], a, plain=stock)
        if len(runs) > 1:
            images = {name: run.results[index].images for name, run in runs.items()}
            winners = {name: found[0].reward for name, found in images.items() if found}
            shown = showcase_of(first, recommended(a.model).call)
            if shown is not None and shown.shows(winners):
                print(f"  {shown.words}")
    if max(count, len(runs)) > 1:
        tabulate(out, runs, written)
    print(f"\ntrace in {out / 'trace.json'}; {CLOCK}")
    every = all(result.images for found in runs.values() for result in found.results)
    return int(first.selection.gated and not every)
