"""What `ttsnap generate` found: written, described, and set beside what another algorithm found."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttsnap.cli.parser import Arguments
from ttsnap.core.cost import KINDS, Phase
from ttsnap.core.results import Candidate, Result, Spent
from ttsnap.files.writing import write_text
from ttsnap.loop.request import STOPPED
from ttsnap.options.call import VideoOptions
from ttsnap.results.answers import answer_lines
from ttsnap.results.folders import slug
from ttsnap.results.outputs import TIMES, enlarged_path, sheet_path

if TYPE_CHECKING:  # loaded with the model
    from ttsnap.pipelines.run import SearchOutcome

TABLE = "table.csv"
"""Of several prompts: a row for each image, with prompt, algorithm, rank, seed, scores, evaluations
and file."""
PARTS: dict[Phase, str] = {"denoise": "denoiser", "decode": "decoder", "reward": "reward"}
"""What most of a search's time goes to, by phase."""
Runs = Mapping[str, "SearchOutcome"]
"""What each algorithm found, by its name, that of --algorithm first."""


def write_runs(out: Path, runs: Runs, videos: VideoOptions | None = None) -> list[list[list[Path]]]:
    """Write the first run to `out`, others to folders in it; the images' paths by run and prompt.
    Of several prompts, a table of all images as well."""
    written: list[list[list[Path]]] = []
    for name, run in runs.items():
        folder = out / slug(Path(name).stem) if written else out
        written.append(run.write(folder, videos))
    if len(written[0]) > 1:
        text = io.StringIO()
        csv.writer(text).writerows(_rows(out, runs, written))
        write_text(out / TABLE, text.getvalue())
    return written


def _rows(out: Path, runs: Runs, written: Sequence[Sequence[Sequence[Path]]]) -> list[list[object]]:
    """A row for each image, after one of names."""
    found = [
        (result, rank, name, path)
        for index in range(len(written[0]))
        for (name, run), paths in zip(runs.items(), written, strict=True)
        for result in [run.results[index]]
        for rank, path in enumerate(paths[index])
    ]
    scored = (_scored(result.images[rank]) for result, rank, *_ in found)
    names = list(dict.fromkeys(name for scores in scored for name in scores))
    head: list[object] = ["prompt", "algorithm", "rank", "seed", *names, "nfe", "file"]
    rows: list[list[object]] = [head]
    for result, rank, algorithm, path in found:
        image, file = result.images[rank], path.relative_to(out)
        scores = _scored(image)
        values = [scores.get(name, "") for name in names]
        whose = [result.prompt, algorithm, rank + 1, image.seed]
        rows.append([*whose, *values, result.spent.nfe, file])
    return rows


def tabulate(out: Path, runs: Runs) -> None:
    """Print the winners of all prompts, a line each, and means over the prompts that have an image,
    for each run."""
    for name, run in runs.items():
        wide = min(60, max(len(result.prompt) for result in run.results))
        print(f"\n{len(run.results)} prompts, {name}:")
        for result in run.results:
            best = "no image"
            if result.images:
                best = f"{_scores(result.best)}, seed {result.best.seed}"
            print(f"  {result.prompt[:wide]:<{wide}}  {best}")
        scores = [_scored(result.best) for result in run.results if result.images]
        means = {
            name: sum(each[name] for each in scores) / len(scores)
            for name in (scores[0] if scores else {})
        }
        if means:
            print(f"  {'mean':<{wide}}  {_listed(means)}")
    print(f"  table: {out / TABLE}")


def compare(runs: Runs, index: int, written: Sequence[Sequence[Sequence[Path]]]) -> None:
    """Print the winners of all runs for a prompt, a line each."""
    results = [run.results[index] for run in runs.values()]
    print(f"  at the same budget of {results[0].spent.budget}:")
    names = [
        name + (" with drafts" if _drafted(result) else "")
        for name, result in zip(runs, results, strict=True)
    ]
    wide = max(map(len, names))
    for name, result, paths in zip(names, results, written, strict=True):
        best = f"{_scores(result.best)}   {paths[index][0]}" if result.images else "no image"
        print(f"    {name:<{wide}}  {best}")
    if len(set(map(_drafted, results))) > 1:
        print("  drafts count in the budget; --draft none compares the searches without them")


def _drafted(result: Result) -> bool:
    """Whether the search looked at drafts."""
    return result.spent.cost.draft_calls > 0


def _scored(candidate: Candidate) -> dict[str, float]:
    return {**candidate.scores, **candidate.metrics}


def _scores(candidate: Candidate) -> str:
    return _listed(_scored(candidate))


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


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
        *_images(run, index, paths),
        *(f"  {line}" for line in answer_lines(result)),
        *_search(run, result),
        *_compute(result.spent),
        *_again(run, result, a, plain),
    ]
    for line in lines:
        print(f"  {line}")


def _images(run: SearchOutcome, index: int, paths: Sequence[Path]) -> Iterator[str]:
    """The images that came back, best first, and the pictures of the whole search."""
    result = run.results[index]
    for warning in result.warnings:
        yield f"warning: {warning}"
    for rank, candidate in enumerate(result.images, 1):
        path = paths[rank - 1] if paths else "(not written)"
        yield f"{rank}. seed {candidate.seed}: {_scores(candidate)}   {path}"
    if not paths:
        return
    folder = paths[0].parent
    yield f"contact sheet: {sheet_path(folder, run.results, index)}"
    large = enlarged_path(folder, run.results, index)
    if large.exists():
        yield f"the best, {TIMES} times as large: {large}"


def _search(run: SearchOutcome, result: Result) -> Iterator[str]:
    """How far the search went: its budget, its seeds, its drafts, and whether more would help."""
    spent, sampler = result.spent, run.record.sampler
    ended = ""
    if spent.ended:
        ended = f"; {spent.ended} by you" if spent.ended == STOPPED else f"; {spent.ended}"
    yield f"spent {_counts(spent)} of a budget of {spent.budget}{ended}"
    yield f"{spent.seeds} seeds started, {spent.finished} finished"
    if _drafted(result):
        use = "were finished" if sampler.finishes else "said which seeds to denoise"
        yield f"drafts by {sampler.told()['draft']} {use} (--draft none searches without)"
    if result.saturated:
        gain = f"{spent.gain_of_second_half:.2g}"
        raised = f"the last half of the finished images raised the best by {gain}"
        yield f"{raised}: more budget would buy little"


def _compute(spent: Spent) -> Iterator[str]:
    """What the search took in FLOPs, seconds and energy, by phase."""
    flops, whole = spent.flops_by, spent.flops or 1.0
    shares = [f"{flops[phase] / whole:.0%} {name}" for phase, name in PARTS.items()]
    times = [f"{_share(spent, phase)} {name}" for phase, name in PARTS.items()]
    if spent.cost.gradients:
        shares.append(f"{flops['gradient'] / whole:.0%} backward passes")
        gradients = "gradients with the evaluations made for them"
        times.append(f"{_share(spent, 'gradient')} {gradients}")
    between = 1 - sum(spent.seconds_by.values()) / (spent.seconds or 1.0)
    times.append(f"{between:.0%} between them")
    computed = f"{spent.flops / 1e12:.4g} TFLOPs: {', '.join(shares)}"
    timed = f"{spent.seconds:.1f} s: {', '.join(times)}"
    yield f"{computed}; {timed}; {spent.seconds_before:.1f} s before, to warm up"
    usage = spent.usage
    joules, each = usage["energy_joules"], usage["energy_joules_per_image"]
    memory = usage["peak_memory_bytes"]
    if joules is not None and each is not None and memory is not None:
        energy = f"{joules:.4g} J of the GPU, {each:.4g} J an image"
        yield f"{energy}; at most {memory / 2**30:.3g} GiB of its memory"


def _again(run: SearchOutcome, result: Result, a: Arguments, plain: bool) -> Iterator[str]:
    """How the winner is made again: by plain diffusers where it can, else by `ttsnap replay`."""
    if not result.images:
        return
    sampler, best = run.record.sampler, result.best
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
    call, dtype = run.record.call, run.record.dtype
    how = "" if dtype == "float32" else f", the pipeline in {dtype}"
    yield f"the winner in plain diffusers{how}:"
    if a.lora is not None:
        from ttsnap.pipelines.lora import parse_lora

        where, scale = parse_lora(a.lora)
        load = f"pipe.load_lora_weights({where!r}, adapter_name='lora')"
        yield f"  {load}; pipe.set_adapters(['lora'], [{scale}])"
    given = {"prompt": repr(result.prompt)} | {name: repr(value) for name, value in call.items()}
    given |= {name: _loaded(files) for name, files in a.call.items() if name not in call}
    given["generator"] = f"torch.Generator().manual_seed({result.best.seed})"
    yield f"  pipe({', '.join(f'{name}={value}' for name, value in given.items())})"


def _loaded(files: object) -> str:
    """The pictures of --call as plain diffusers is given them."""
    if isinstance(files, list):
        return f"[{', '.join(map(_loaded, files))}]"
    return f"load_image({files!r})"


def _counts(spent: Spent) -> str:
    """What was spent of each kind of cost; of kinds that only some searches know, where there was
    any."""
    counts = {**spent.cost.named(), "nfe": round(spent.nfe, 2)}
    told = [kind for kind in KINDS if kind.summed and (counts[kind.name] or not kind.rare)]
    told.sort(key=lambda kind: kind.phase == "reward")
    words = {kind.name: f"{counts[kind.name]} {kind.label}" for kind in told}
    words["nfe"] += f" ({spent.forward_passes} forward passes)"
    *first, last = words.values()
    return f"{', '.join(first)} and {last}"


def _share(spent: Spent, phase: Phase) -> str:
    return f"{spent.seconds_by[phase] / (spent.seconds or 1.0):.0%}"
