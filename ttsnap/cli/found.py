"""What `ttsnap generate` found: written, described, and set beside what another algorithm found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ttsnap.cli.parser import Arguments
from ttsnap.core.results import Result, Spent
from ttsnap.files.writing import markdown, write_csv
from ttsnap.options.call import VideoOptions
from ttsnap.results.folders import slug
from ttsnap.results.outputs import TIMES, enlarged_path, sheet_path
from ttsnap.results.report import listed, report, scored

if TYPE_CHECKING:  # loaded with the model
    from ttsnap.pipelines.run import SearchOutcome

TABLE = "table.csv"
"""Of several prompts: a row for each image, with prompt, algorithm, rank, seed, scores, evaluations
and file."""
PARTS = {
    "denoise": "denoiser",
    "decode": "decoder",
    "reward": "reward",
    "gradient": "gradients",
    "between": "between them",
}
"""What a search's time goes to, by phase."""
Runs = Mapping[str, "SearchOutcome"]
"""What each algorithm found, by its name, that of --algorithm first."""


Written = list[list[list[Path]]]
"""The paths of images by run and prompt."""


def write_runs(out: Path, runs: Runs, videos: VideoOptions | None = None) -> Written:
    """Write the first run to `out`, others to folders in it."""
    folders = [out, *(out / slug(Path(name).stem) for name in list(runs)[1:])]
    return [run.write(folder, videos) for run, folder in zip(runs.values(), folders, strict=True)]


def tabulate(out: Path, runs: Runs, written: Written) -> None:
    """Print the winners of all prompts by all runs, and their means. Of several prompts, write a
    table of all images as well."""
    rows: list[dict[str, Any]] = []
    lines: list[list[object]] = []
    for (name, run), paths in zip(runs.items(), written, strict=True):
        best = [scored(result.best) for result in run.results if result.images]
        for result, files in zip(run.results, paths, strict=True):
            drafts = result.spent.cost.draft_calls
            for rank, (image, path) in enumerate(zip(result.images, files, strict=True), 1):
                whose = {"prompt": result.prompt, "algorithm": name, "rank": rank}
                own = {**whose, "seed": image.seed, "nfe": result.spent.nfe, "drafts": drafts}
                own["file"] = path.relative_to(out)
                rows.append({**own, **scored(image), **own})
            words = ["no image", ""]
            if result.images:
                words = [listed(scored(result.best)), str(files[0])]
            lines.append([result.prompt[:60], name, drafts, *words])
        if len(best) > 1:
            common = [key for key in best[0] if all(key in scores for scores in best)]
            means = {key: fmean(scores[key] for scores in best) for key in common}
            lines.append(["mean", name, "", listed(means), ""])
    print(f"\nwinners, each of a budget of {run.results[0].spent.budget}:")
    print(markdown(["prompt", "algorithm", "drafts", "scores", "file"], lines, left=range(5)))
    if len({_drafted(result) for run in runs.values() for result in run.results}) > 1:
        print("drafts count in the budget; --draft none compares the searches without them")
    if len(run.results) > 1:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_csv(out / TABLE, columns, [[row.get(key, "") for key in columns] for row in rows])
        print(f"table: {out / TABLE}")


def _drafted(result: Result) -> bool:
    """Whether the search looked at drafts."""
    return result.spent.cost.draft_calls > 0


def describe(
    run: SearchOutcome, index: int, paths: Sequence[Path], a: Arguments, *, plain: bool
) -> None:
    """Print what was found for a prompt, where it was written (nowhere, without paths), and what it
    took.

    plain: whether plain diffusers makes the winner again, which is then told.
    """
    result = run.results[index]
    print(f"\n{result.prompt}")
    lines = [
        *report(result, paths),
        *_files(run, index, paths),
        *_more(run, result),
        *_compute(result.spent),
        *_again(run, result, a, plain),
    ]
    for line in lines:
        print(f"  {line}")


def _files(run: SearchOutcome, index: int, paths: Sequence[Path]) -> Iterator[str]:
    """The pictures of the whole search."""
    if not paths:
        return
    folder = paths[0].parent
    yield f"contact sheet: {sheet_path(folder, run.results, index)}"
    large = enlarged_path(folder, run.results, index)
    if large.exists():
        yield f"the best, {TIMES} times as large: {large}"


def _more(run: SearchOutcome, result: Result) -> Iterator[str]:
    """What drafts were for, and whether more budget would help."""
    sampler = run.record.sampler
    if _drafted(result):
        use = "were finished" if sampler.finishes else "said which seeds to denoise"
        yield f"drafts by {sampler.told()['draft']} {use} (--draft none searches without)"
    if result.saturated:
        gain = f"{result.spent.gain_of_second_half:.2g}"
        raised = f"the last half of the finished images raised the best by {gain}"
        yield f"{raised}: more budget would buy little"


def _compute(spent: Spent) -> Iterator[str]:
    """What the search took in FLOPs, seconds and energy, by phase."""
    between = spent.seconds - sum(spent.seconds_by.values())
    times = _shares({**spent.seconds_by, "between": between}, spent.seconds)
    flops = f"{spent.flops / 1e12:.4g} TFLOPs: {_shares(spent.flops_by, spent.flops)}"
    before = f"{spent.seconds_before:.1f} s before, to warm up"
    yield f"{flops}; {spent.seconds:.1f} s: {times}; {before}"
    usage = spent.usage
    joules = usage["energy_joules"]
    each = usage["energy_joules_per_image"]
    memory = usage["peak_memory_bytes"]
    if joules is not None and each is not None and memory is not None:
        energy = f"{joules:.4g} J of the GPU, {each:.4g} J an image"
        yield f"{energy}; at most {memory / 2**30:.3g} GiB of its memory"


def _shares(parts: Mapping[Any, float], whole: float) -> str:
    """What each phase has of the whole, where it is any."""
    shares = {PARTS[phase]: part / (whole or 1.0) for phase, part in parts.items() if part}
    return ", ".join(f"{share:.0%} {name}" for name, share in shares.items())


def _again(run: SearchOutcome, result: Result, a: Arguments, plain: bool) -> Iterator[str]:
    """How the winner is made again: by plain diffusers where it can, else by `ttsnap replay`."""
    if not result.images:
        return
    sampler = run.record.sampler
    best = result.best
    from_noise = result.particles.parent[best.uid] < 0
    if plain and from_noise and not sampler.finishes:
        yield from _plain_call(run, result, a)
    elif sampler.repel and from_noise:
        again = "`ttsnap replay` makes the winner again with the seeds that it began with"
        yield f"{again}; plain diffusers does not"
    elif sampler.finishes:
        yield "`ttsnap replay` makes the winner again; plain diffusers finishes no drafts"


def _plain_call(run: SearchOutcome, result: Result, a: Arguments) -> Iterator[str]:
    """The call of plain diffusers that makes the winner again from its seed."""
    call = run.record.call
    dtype = run.record.dtype
    how = "" if dtype == "float32" else f", the pipeline in {dtype}"
    yield f"the winner in plain diffusers{how}:"
    if a.lora is not None:
        from ttsnap.pipelines.lora import parse_lora

        where, scale = parse_lora(a.lora)
        load = f"pipe.load_lora_weights({where!r}, adapter_name='lora')"
        yield f"  {load}; pipe.set_adapters(['lora'], [{scale}])"
    words = [f"{name}={value!r}" for name, value in {"prompt": result.prompt, **call}.items()]
    words += [f"{name}={_loaded(file)}" for name, file in a.call.items() if name not in call]
    yield f"  pipe({', '.join(words)}, generator=torch.Generator().manual_seed({result.best.seed}))"


def _loaded(files: object) -> str:
    """The pictures of --call as plain diffusers is given them."""
    if isinstance(files, list):
        return f"[{', '.join(map(_loaded, files))}]"
    return f"load_image({files!r})"
