"""What `ttsnap generate` found: written, described, and set beside what another algorithm found."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttsnap.cli.parser import Arguments
from ttsnap.core.cost import KINDS
from ttsnap.core.results import Candidate, Result, Spent
from ttsnap.files.writing import write_text
from ttsnap.loop.request import STOPPED
from ttsnap.options.call import VideoOptions
from ttsnap.results.folders import slug
from ttsnap.results.outputs import TIMES, enlarged_path, sheet_path, write_enlarged, write_results

if TYPE_CHECKING:  # loaded with the model
    from ttsnap.pipelines.run import SearchOutcome

TABLE = "table.csv"
"""Of several prompts: a row for each image, with prompt, algorithm, rank, seed, scores, evaluations
and file."""


Runs = Mapping[str, "SearchOutcome"]
"""What each algorithm found, by its name, that of --algorithm first."""


def write_runs(out: Path, runs: Runs, videos: VideoOptions | None = None) -> list[list[list[Path]]]:
    """Write the first run to `out`, others to folders in it; the images' paths by run and prompt.
    Of several prompts, a table of all images as well."""
    written: list[list[list[Path]]] = []
    for name, run in runs.items():
        folder = out / slug(Path(name).stem) if written else out
        paths = write_results(folder, run.results, run.record, videos)
        for index, result in enumerate(run.results):
            if result.images:
                write_enlarged(enlarged_path(folder, run.results, index), result.best.pixels)
        written.append(paths)
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
    names = list(
        dict.fromkeys(name for result, rank, *_ in found for name in _scored(result.images[rank]))
    )
    head: list[object] = ["prompt", "algorithm", "rank", "seed", *names, "nfe", "file"]
    rows: list[list[object]] = [head]
    for result, rank, algorithm, path in found:
        scores = _scored(result.images[rank])
        values = [scores.get(name, "") for name in names]
        spent = result.spent.nfe
        rows.append(
            [
                result.prompt,
                algorithm,
                rank + 1,
                result.images[rank].seed,
                *values,
                spent,
                path.relative_to(out),
            ]
        )
    return rows


def tabulate(out: Path, runs: Runs) -> None:
    """Print the winners of all prompts, a line each, and means over the prompts that have an image,
    for each run."""
    for name, run in runs.items():
        wide = min(60, max(len(result.prompt) for result in run.results))
        print(f"\n{len(run.results)} prompts, {name}:")
        for result in run.results:
            best = (
                f"{_scores(result.best)}, seed {result.best.seed}" if result.images else "no image"
            )
            print(f"  {result.prompt[:wide]:<{wide}}  {best}")
        scores = [_scored(result.best) for result in run.results if result.images]
        means = {
            name: sum(each[name] for each in scores) / len(scores)
            for name in (scores[0] if scores else {})
        }
        if means:
            print(
                f"  {'mean':<{wide}} "
                f" {', '.join(f'{name} {value:.4g}' for name, value in means.items())}"
            )
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
    return ", ".join(f"{name} {value:.4g}" for name, value in _scored(candidate).items())


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
        yield (
            f"the last half of the finished images raised the best by {gain}: more budget would buy"
            " little"
        )


def _compute(spent: Spent) -> Iterator[str]:
    """What the search took in FLOPs, seconds and energy, by phase."""
    by, flops, gradients, pulled = spent.flops_by, spent.flops or 1.0, "", ""
    if spent.cost.gradients:
        gradients = f", {by['gradient'] / flops:.0%} backward passes"
        pulled = f", {_share(spent, 'gradient')} gradients with the evaluations made for them"
    between = 1 - sum(spent.seconds_by.values()) / (spent.seconds or 1.0)
    computed = (
        f"{spent.flops / 1e12:.4g} TFLOPs: {by['denoise'] / flops:.0%} denoiser, "
        f"{by['decode'] / flops:.0%} decoder, {by['reward'] / flops:.0%} reward{gradients}"
    )
    timed = (
        f"{spent.seconds:.1f} s: {_share(spent, 'denoise')} denoiser, {_share(spent, 'decode')}"
        f" decoder, {_share(spent, 'reward')} reward{pulled}, {between:.0%} between them"
    )
    yield f"{computed}; {timed}; {spent.seconds_before:.1f} s before, to warm up"
    usage = spent.usage
    joules, each, memory = (
        usage[name] for name in ("energy_joules", "energy_joules_per_image", "peak_memory_bytes")
    )
    if joules is not None and each is not None and memory is not None:
        yield (
            f"{joules:.4g} J of the GPU, {each:.4g} J an image; at most {memory / 2**30:.3g} GiB of"
            " its memory"
        )


def _again(run: SearchOutcome, result: Result, a: Arguments, plain: bool) -> Iterator[str]:
    """How the winner is made again: by plain diffusers where it can, else by `ttsnap replay`."""
    sampler, call = run.record.sampler, run.record.call
    if not result.images:
        return
    seed, from_noise = result.best.seed, result.particles.parent[result.best.uid] < 0
    if plain and from_noise and not sampler.finishes:
        dtype = run.record.dtype
        yield (
            "the winner in plain"
            f" diffusers{'' if dtype == 'float32' else f', the pipeline in {dtype}'}:"
        )
        if a.lora is not None:
            from ttsnap.pipelines.lora import parse_lora

            where, scale = parse_lora(a.lora)
            yield (
                f"  pipe.load_lora_weights({where!r}, adapter_name='lora');"
                f" pipe.set_adapters(['lora'], [{scale}])"
            )
        pictures = {name: _loaded(given) for name, given in a.call.items() if name not in call}
        written = {name: repr(value) for name, value in call.items()} | pictures
        arguments = "".join(f", {name}={value}" for name, value in written.items())
        yield (
            f"  pipe(prompt={result.prompt!r}{arguments},"
            f" generator=torch.Generator().manual_seed({seed}))"
        )
    elif sampler.repel and from_noise:
        yield (
            "`ttsnap replay` makes the winner again with the seeds that it began with; plain"
            " diffusers does not"
        )
    elif sampler.finishes:
        from ttsnap.pipelines.drafting.drafting import stock_lines

        if lines := stock_lines(run.denoiser, result.prompt, call, seed):
            yield (
                "the winner in plain diffusers: `drafter` has the drafter's network, `redraw` is"
                " image-to-image:"
            )
            yield from (f"  {line}" for line in lines)


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


def _share(spent: Spent, phase: str) -> str:
    return f"{spent.seconds_by[phase] / (spent.seconds or 1.0):.0%}"
