"""`ttsnap bench`: a prompt set searched by several algorithms at equal budgets."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ttsnap.algorithms import own_algorithm
from ttsnap.bench import PRESETS
from ttsnap.cli import arguments, common
from ttsnap.cli.common import resumable
from ttsnap.cli.configs import read_preset
from ttsnap.cli.parser import PRESET_PARTS, Arguments, Parser
from ttsnap.cli.simulate import read_span
from ttsnap.extras import install
from ttsnap.files.pictured import digests
from ttsnap.files.writing import write_text
from ttsnap.options.call import PictureOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import option, values
from ttsnap.options.record import BenchOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.request import Prepared
from ttsnap.version import versions

if TYPE_CHECKING:
    from ttsnap.bench.arms import Arm
    from ttsnap.bench.folder import OpenBench
    from ttsnap.bench.prompts import PromptSet
    from ttsnap.bench.run import Bench
    from ttsnap.bench.summary import Line
    from ttsnap.core.prompt import Prompt
    from ttsnap.core.protocols import Engine
    from ttsnap.core.results import Result
    from ttsnap.files.settings import Json
    from ttsnap.loop.request import Listener, LoopSearch
    from ttsnap.results.record import SearchRecord


DESCRIPTION = """Search for every prompt of a set by several algorithms with equal budgets, and compare what they find.

--out gets a folder an algorithm, in the layout of GenEval, with lists of the images for evalscope and GenEval 2, and
summary.md, .json and .png: means with their standard errors over prompts, differences to the first algorithm prompt by
prompt, and what it took. Ctrl-C and SIGTERM are safe: the search at hand, of one prompt, is finished and kept, and the
same command resumes and makes the same images.

Prompt sets are read as their authors publish them: text with a prompt a line, JSON Lines (GenEval, GenEval 2), JSON
(HPDv2, VBench), CSV or TSV with a header (PartiPrompts, DrawBench), or a folder of .txt files (DPG).

An algorithm may have options and a sampler of its own, as "svdd kernel=sde n=4".

examples:
  ttsnap bench --prompts-file geneval.jsonl --repeats 4 --reward imagereward \\
      --model stabilityai/stable-diffusion-3.5-medium --out bench/geneval
  ttsnap bench --prompts-file PartiPrompts.tsv --prompts 0:200 \\
      --algorithms best-of-n seed-pruning "svdd kernel=sde" \\
      --model Efficient-Large-Model/Sana_600M_512px_diffusers \\
      --reward hpsv2.1 --budget 400nfe --out bench/parti
  ttsnap bench --preset dogtrim-embedded --prompts 0:4 --out trim --dry-run
"""
COMPARED = ("best-of-n", "seed-pruning")
"""What is compared where nothing is named."""


@dataclass(frozen=True)
class SetOptions:
    """Which prompts are searched for, and by which algorithms."""

    prompts_file: str | None = option(
        None,
        "the prompt set, a file or a folder; packaged models have one of their own",
        metavar="FILE",
        common=True,
    )
    prompts: str = option(":", "which of its prompts, as 0:20", metavar="RANGE")
    algorithms: tuple[str, ...] = option(
        COMPARED,
        "names (ttsnap algorithms lists them), .json files or file.py:Class, each with options where"
        " it needs them; the others are compared with the first",
        common=True,
    )
    out: str | None = option(
        None,
        "where to write, or a benchmark to resume (required but for --dry-run)",
        metavar="FOLDER",
        common=True,
    )
    dry_run: bool = option(False, "only say what it takes, by measured seconds here")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    arguments.add_preset(
        p, PRESETS, "a paper's protocol: its settings, over which others win, and its algorithms"
    )
    make = p.add_argument_group("what to make")
    arguments.add_options(make, SetOptions, "prompts_file", "prompts")
    arguments.add_call(make, "negative_prompt", "height", "width")
    arguments.add_options(make, BenchOptions)
    arguments.add_options(make, SearchOptions, "seed")
    arguments.add_options(p.add_argument_group("pictures to start from"), PictureOptions)
    find = p.add_argument_group("searches")
    arguments.add_options(find, SetOptions, "algorithms")
    arguments.add_options(find, SearchOptions, without=("search", "seed"))
    arguments.add_options(find, SelectionOptions, "utility", "report")
    arguments.add_sampler(p.add_argument_group("sampler"))
    model = p.add_argument_group("model and memory")
    arguments.add_options(model, ModelOptions)
    # Part of what must stay the same to resume a benchmark, so not measured.
    arguments.add_options(model, BatchOptions, batch_size=32)
    arguments.add_options(model, DeviceOptions)
    arguments.add_options(p.add_argument_group("output"), SetOptions, "out", "dry_run")
    return p


def run(a: Arguments) -> int:
    """Run what is missing, write the summary and print it; of a preset, part after part."""
    from ttsnap.bench.folder import run_folder
    from ttsnap.bench.report import table_of_parts, table_of_plans
    from ttsnap.bench.run import plan

    if a.out is None and not a.dry_run:
        raise ValueError("OUT must be given: --out FOLDER")
    parts = {}
    settings = {}
    for name, each in _parts(a).items():
        bench, whole, plain = _planned(each)
        parts[name], settings[name] = (each, bench), _settings(each, bench, whole, plain)
        if a.out is not None:
            run_folder(Path(each.out), settings[name]).check()  # before a model is loaded
        for arm, search in bench.searches.items():
            if isinstance(search, Prepared) and search.doubt is not None:
                print(f"{arm}: {search.doubt}", file=sys.stderr)
        count = f"{f'{name}: ' if name else ''}{len(bench.prompts)} of {len(whole.prompts)}"
        print(
            f"{count} prompts of {a.prompts_file or a.model} ({whole.kind}), {bench.images} images",
            file=sys.stderr,
        )
    model = BenchModel(a)
    if a.dry_run:
        print(
            table_of_plans(
                {name: plan(bench, model.of(bench)) for name, (_, bench) in parts.items()}
            )
        )
        return 0
    lines = {
        name: _run(bench, Path(each.out), settings[name], model)
        for name, (each, bench) in parts.items()
    }
    if len(lines) > 1:
        table = table_of_parts(lines)
        write_text(Path(a.out) / "summary.md", f"{table}\n")
        print(f"\n{table}\n\nsummary.md in {a.out}")
    return 0


def _parts(a: Arguments) -> dict[str, Arguments]:
    """The benchmarks of a preset, each with settings and a folder of its own; else the one that is
    asked for."""
    parts = {} if a.preset is None else read_preset(PRESETS, a.preset).get(PRESET_PARTS, {})
    for name in sorted({name for part in parts.values() for name in part}):
        if a[name] != parser().get_default(name):
            raise ValueError(
                f"--preset {a.preset} says {name} for each of its parts; leave --{name} out"
            )
    out = Path(a.out or ".")
    return {
        name: Arguments(**{**vars(a), **part, "out": str(out / name)})
        for name, part in parts.items()
    } or {"": a}


def _planned(a: Arguments) -> tuple[Bench, PromptSet, Prepared]:
    """What is run, the set that its prompts are of, and the search that no algorithm decides on
    anything of. ValueError for what does not fit."""
    from ttsnap.bench.arms import read_arms
    from ttsnap.bench.run import Bench

    whole = _prompt_set(a)
    prompts = whole.prompts[read_span(a.prompts)]
    if not prompts:
        raise ValueError(
            f"--prompts {a.prompts} leaves none of the {len(whole.prompts)} prompts of"
            f" {a.prompts_file}"
        )
    texts = arguments.with_pictures(prompts, Path(a.prompts_file or "."), a.task)
    # studies name their drafters
    arms = read_arms(a.algorithms, arguments.read(SamplerOptions, a).drafted_by(None))
    engine = arguments.engine_spec(a, texts, arms[0].sampler)
    request = arguments.request(a, texts, COMPARED[0], engine)
    plain = common.prepared(request)
    common.check_affordable(plain)
    searches = {}
    for arm in arms:
        own = request.by(own_algorithm(arm.algorithm), arm.options, arm.sampler)
        searches[arm.name] = common.prepared(own)
    steps = {
        name: search.engine.call.get("num_inference_steps") for name, search in searches.items()
    }
    if request.budget.images is not None and len(set(steps.values())) > 1:
        raise ValueError(
            "an image takes other evaluations with the denoising steps that some of these"
            " algorithms were tuned for: give a --budget as 400nfe, or --steps for all of them"
        )
    arms = [replace(arm, steps=steps[arm.name]) for arm in arms]
    return (
        Bench(prompts, plain.prompts, arms, searches, arguments.read(BenchOptions, a)),
        whole,
        plain,
    )


def _prompt_set(a: Arguments) -> PromptSet:
    """That of --prompts-file, or a packaged model's own: a hundred prompts that its training never
    saw."""
    from ttsnap.bench.prompts import PromptRecord, PromptSet, read_prompt_set

    if a.prompts_file is not None:
        return read_prompt_set(Path(a.prompts_file))
    if a.model not in PACKAGED or a.task != TEXT:
        raise ValueError("PROMPTS_FILE must be given: --prompts-file FILE")
    from ttsnap.pipelines.packaged import MODELS

    world = MODELS[a.model].world
    texts = world.sample_prompts(100, seed=21)
    entries = [{"prompt": text, "tag": world.parse(text).kind} for text in texts]
    return PromptSet("its own", tuple(PromptRecord(i, entry) for i, entry in enumerate(entries)))


def _settings(a: Arguments, bench: Bench, whole: PromptSet, plain: Prepared) -> dict[str, Json]:
    """What must be the same to resume: all that decides on the images and their scores."""
    call = {**plain.engine.call, **plain.prompts[0].inputs}
    entries = json.dumps([dict(prompt.metadata) for prompt in bench.prompts], sort_keys=True)
    pictures = json.dumps([digests({**call, **text.inputs}) for text in bench.texts])
    place, kind = common.opening().placement(a.device, a.dtype)
    model = replace(
        arguments.read(ModelOptions, a), device=place.type, dtype=str(kind).removeprefix("torch.")
    )
    options = values(bench.options) | values(model) | values(arguments.read(BatchOptions, a))
    del options["sheets"]  # it decides nothing
    return {
        "versions": versions("torch", "diffusers"),
        "prompts": {
            "kind": whole.kind,
            "count": len(bench.prompts),
            "first": bench.prompts[0].index,
            "sha256": hashlib.sha256(entries.encode()).hexdigest(),
            "pictures_sha256": hashlib.sha256(pictures.encode()).hexdigest(),
        },
        "algorithms": [arm.noted() for arm in bench.arms],
        "budget": str(plain.budget),
        "shared": plain.loop.shared,
        "reward": a.reward or plain.engine.rewards[0],
        "utility": a.utility,
        "report": arguments.report_of(a),
        "seed": plain.seed,
        **options,
        "call": {**call, **digests(call)},
    }


def _run(bench: Bench, out: Path, settings: Mapping[str, Json], model: BenchModel) -> list[Line]:
    """Load the model where images are missing, run, and report."""
    from ttsnap.bench.folder import open_bench
    from ttsnap.bench.report import lines_of

    done = f"of {bench.images} images are"
    with open_bench(out, settings) as there, resumable(out, lambda: f"{len(there.found)} {done}"):
        _run_in(bench, there, model)
        return lines_of(bench, there)


def _run_in(bench: Bench, there: OpenBench, model: BenchModel) -> None:
    """Run what an open folder lacks, and report."""
    from tqdm.auto import tqdm

    from ttsnap.bench.report import write_report
    from ttsnap.bench.run import missing, run

    if missing(bench, there):
        model = model.of(bench)
        with tqdm(total=bench.images, unit="image", desc="bench") as bar:

            def advance(images: int) -> None:
                bar.update(images)

            run(model.bench, there, model, advance)
    tables, drawn = write_report(bench, there)
    print(
        f"\n{tables}\n\nsummary.md, summary.json, results.jsonl and a folder an algorithm in"
        f" {there.folder}"
    )
    if not drawn:
        print(f"for summary.png, {install('plot')}, and run the same command again")


class BenchModel:
    """The pipeline of a benchmark, its rewards and the metrics, once loaded: what
    `ttsnap.bench.run` runs on."""

    pipe: Any = None

    def __init__(self, a: Arguments) -> None:
        self._devices = arguments.read(DeviceOptions, a)

    def of(self, bench: Bench) -> BenchModel:
        """The same, for the searches of this benchmark. The first one's loads."""
        self.bench = bench
        first = cast("Prepared", bench.searches[bench.arms[0].name])
        if self.pipe is None:
            self.pipe, self._loaded = common.loaded(first, self._devices)
        for reward in self._loaded.reports or ():
            reward.check([prompt.read for prompt in bench.texts])
        return self

    @contextmanager
    def engine(self, arm: Arm) -> Iterator[Engine]:
        """An engine of an arm, on one device or on many, until the block ends."""
        from ttsnap.pipelines.engine_factory import open_engine

        spec = cast("Prepared", self.bench.searches[arm.name]).engine
        scoring = self._loaded.scoring
        with open_engine(spec, self._devices, self.pipe, scoring) as (engine, self._denoiser):
            if self._denoiser.frames is not None:
                raise ValueError(
                    "a benchmark is of images, and this model makes videos; use ttsnap generate"
                )
            yield engine

    def run(
        self,
        arm: Arm,
        search: LoopSearch,
        prompts: Sequence[Prompt],
        engine: Engine,
        listener: Listener,
        *,
        sheets: bool,
    ) -> tuple[list[Result], SearchRecord]:
        """Results as a call of the pipeline returns them, and their record."""
        from ttsnap.pipelines.run import Opened, run_on
        from ttsnap.results.outputs import Recorder

        opened = Opened(engine, self._denoiser, prompts, self._loaded.reports or ())
        seen = Recorder() if sheets else None
        prepared = cast("Prepared", self.bench.searches[arm.name])
        outcome = run_on(opened, prepared, self.pipe, [listener], seen, loop=search)
        return outcome.results, outcome.record
