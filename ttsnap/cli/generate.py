"""`ttsnap generate`: the best image for a prompt under a budget."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.algorithms import own_algorithm
from ttsnap.cli import arguments, common
from ttsnap.cli.algorithms import algorithm_lines
from ttsnap.cli.common import CLOCK, StopOnSignal, left_by_signals
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.options.call import PictureOptions, VideoOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.request import Prepared, prepare

if TYPE_CHECKING:
    from ttsnap.pipelines.run import SearchOutcome

IMAGES_TABLE = "table.csv"
"""Of several prompts: a row for each image."""
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
    p = Parser(DESCRIPTION, epilog=f"algorithms:\n{algorithm_lines()}")
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
    """Search, write the images, and say what it took."""
    from ttsnap.results.outputs import reserved

    # What can be refused is refused before the model is loaded.
    searches = _searches(a)
    videos = arguments.read(VideoOptions, a)
    if videos.video_format == "mp4":
        from ttsnap.results.media import require_av

        require_av("--video-format mp4")
    first = searches[a.algorithm]
    of_a_set = a.prompts_file and len(first.prompts) > 1
    name = Path(a.prompts_file).stem if of_a_set else first.prompts[0].text
    with left_by_signals(), reserved(a.out, name, a.overwrite) as out:
        runs = _written(a, searches, videos, out)
    print(f"\ntrace in {out / 'trace.json'}; {CLOCK}")
    every = all(result.images for run in runs.values() for result in run.results)
    return int(first.selection.gated and not every)


def _searches(a: Arguments) -> dict[str, Prepared]:
    """The searches by the names of their algorithms, that of --algorithm first. ValueError for what
    does not fit."""
    prompts = arguments.read_prompts(a, "generate", a.task)
    if a.compare == a.algorithm:
        raise ValueError(f"--compare {a.compare} is the algorithm itself; name another")
    engine = arguments.engine_spec(a, prompts, arguments.read(SamplerOptions, a))
    request = arguments.request(a, prompts, own_algorithm(a.algorithm), engine)
    searches = {a.algorithm: common.prepared(request)}
    if a.compare:
        searches[a.compare] = common.prepared(request.by(own_algorithm(a.compare)))
    common.check_affordable(searches[a.algorithm])
    return searches


def _written(
    a: Arguments, searches: Mapping[str, Prepared], videos: VideoOptions, out: Path
) -> dict[str, SearchOutcome]:
    """Load, search, and write to `out`, which is reserved: the first search, and others to folders
    in it."""
    devices = arguments.read(DeviceOptions, a)
    pipe, rewards = common.loaded(searches[a.algorithm], devices)
    from ttsnap.pipelines.run import decisions_of, run  # loaded with the model
    from ttsnap.results import report
    from ttsnap.results.outputs import refusing, slug

    runs: dict[str, SearchOutcome] = {}
    paths: dict[str, list[list[Path]]] = {}
    with StopOnSignal() as stop:
        for name, search in searches.items():
            if runs and stop():
                print(f"stopped before {name} ran", file=sys.stderr)
                break
            # with what was left to the model
            complete = prepare(search.request, decisions_of(pipe))
            runs[name] = run(complete, pipe, devices, should_stop=stop, loaded=rewards)
            try:
                with refusing(out):
                    folder = out / slug(Path(name).stem) if paths else out
                    paths[name] = runs[name].write(folder, videos)
            finally:  # what makes the images again is said even where they cannot be written
                if len(runs) == 1:
                    _describe(runs[name], paths.get(name), a)
    results = {name: run.results for name, run in runs.items()}
    first = results[a.algorithm]
    if len(runs) > 1 or len(first) > 1:
        print(f"\nwinners, each of a budget of {first[0].spent.budget}:")
        print(report.winners(results, paths))
    if len(first) > 1:
        report.write_images_table(out / IMAGES_TABLE, results, paths)
        print(f"table: {out / IMAGES_TABLE}")
    _show_odds(searches[a.algorithm], runs)
    return runs


def _describe(run: SearchOutcome, paths: Sequence[Sequence[Path]] | None, a: Arguments) -> None:
    """Print the report of each prompt. paths: of its images, where they could be written."""
    from ttsnap.results.report import report_in_full

    call = a.call if a.task == TEXT else None  # stock diffusers is shown without pictures
    for index, result in enumerate(run.results):
        print(f"\n{result.prompt}")
        written = paths[index] if paths else ()
        for line in report_in_full(run.results, index, run.record, written, call):
            print(f"  {line}")


def _show_odds(search: Prepared, runs: Mapping[str, SearchOutcome]) -> None:
    """Print how often each of these searches is right, where this is a model's showcase and shows
    the difference."""
    from ttsnap.pipelines import recommended
    from ttsnap.pipelines.packaged import showcase_of

    images = {name: run.results[0].images for name, run in runs.items()}
    rewards = {name: best[0].reward for name, best in images.items() if best}
    shown = showcase_of(search, recommended(search.request.model).call)
    if len(runs) > 1 and shown is not None and shown.shows(rewards):
        print(shown.words)
