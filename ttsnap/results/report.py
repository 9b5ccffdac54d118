"""A result in words, as every door tells it; that of a checklist by the words of its items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from ttsnap.core.checklist import YES, is_item
from ttsnap.core.results import Candidate, Result, Spent
from ttsnap.files.writing import markdown, write_csv
from ttsnap.options.model import parse_lora
from ttsnap.options.selection import listed
from ttsnap.results.outputs import TIMES, enlarged_path, sheet_path
from ttsnap.results.record import SearchRecord
from ttsnap.reward_models.registry import asked_of

PHASE_WORDS = {
    "denoise": "denoiser",
    "decode": "decoder",
    "reward": "reward",
    "gradient": "gradients",
    "between": "between them",
}
"""What a search's time goes to, by phase."""


def report(result: Result, paths: Sequence[Path] = ()) -> Iterator[str]:
    """What a search found and what it spent, in lines. paths: where its images were written."""
    for warning in result.warnings:
        yield f"warning: {warning}"
    for rank, (image, path) in enumerate(zip_longest(result.images, paths), 1):
        yield f"{rank}. seed {image.seed}: {numbers(scores_of(image))}   {path or ''}".rstrip()
    yield from answer_lines(result)
    yield f"spent {result.spent}"


def report_in_full(
    results: Sequence[Result],
    index: int,
    record: SearchRecord,
    paths: Sequence[Path] = (),
    call: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """The same of prompt number `index`, with its other files, what its time went to, and how its
    winner is made again.

    record: of the search. call: more arguments of the stock call, pictures as files, where plain
    diffusers makes the winner again."""
    result = results[index]
    yield from report(result, paths)
    if paths:
        yield f"contact sheet: {sheet_path(paths[0].parent, results, index)}"
        large = enlarged_path(paths[0].parent, results, index)
        if large.exists():
            yield f"the best, {TIMES} times as large: {large}"
    yield from _more(result, record)
    yield from _compute(result.spent)
    if result.images:
        yield from _again(result, record, call)


def scores_of(image: Candidate) -> dict[str, float]:
    """The scores and metrics of an image, after the sum of several rewards."""
    total = {"reward": image.reward} if len(image.scores) > 1 else {}
    return {**total, **image.scores, **image.metrics}


def numbers(values: Mapping[str, float]) -> str:
    """Numbers with their names."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _drafted(result: Result) -> bool:
    """Whether the search looked at drafts."""
    return result.spent.cost.draft_calls > 0


def _more(result: Result, record: SearchRecord) -> Iterator[str]:
    """What drafts were for, and whether more budget would help."""
    sampler = record.sampler
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
    shares = {PHASE_WORDS[phase]: part / (whole or 1.0) for phase, part in parts.items() if part}
    return ", ".join(f"{share:.0%} {name}" for name, share in shares.items())


def _again(result: Result, record: SearchRecord, call: Mapping[str, Any] | None) -> Iterator[str]:
    """How the winner is made again: by plain diffusers where it can, else by `ttsnap replay`."""
    sampler = record.sampler
    from_noise = result.particles.parent[result.best.uid] < 0
    if sampler.finishes:
        yield "`ttsnap replay` makes the winner again; plain diffusers finishes no drafts"
    elif sampler.repel and from_noise:
        again = "`ttsnap replay` makes the winner again with the seeds that it began with"
        yield f"{again}; plain diffusers does not"
    elif call is not None and sampler.stock and from_noise:
        yield from _stock_call(result, record, call)


def _stock_call(result: Result, record: SearchRecord, call: Mapping[str, Any]) -> Iterator[str]:
    """The call of plain diffusers that makes the winner again from its seed."""
    how = "" if record.dtype == "float32" else f", the pipeline in {record.dtype}"
    yield f"the winner in plain diffusers{how}:"
    for lora in listed(record.lora):
        where, scale = parse_lora(lora)
        load = f"pipe.load_lora_weights({where!r}, adapter_name='lora')"
        yield f"  {load}; pipe.set_adapters(['lora'], [{scale}])"
    words = [
        f"{name}={value!r}" for name, value in {"prompt": result.prompt, **record.call}.items()
    ]
    words += [f"{name}={_loaded(file)}" for name, file in call.items() if name not in record.call]
    yield f"  pipe({', '.join(words)}, generator=torch.Generator().manual_seed({result.best.seed}))"


def _loaded(files: object) -> str:
    """Pictures as plain diffusers is given them."""
    if isinstance(files, list):
        return f"[{', '.join(map(_loaded, files))}]"
    return f"load_image({files!r})"


Runs = Mapping[str, Sequence[Result]]
"""The results of several searches for the same prompts, by the names of their algorithms."""
Written = Mapping[str, Sequence[Sequence[Path]]]
"""The paths of their images, by search and prompt."""


def winners(runs: Runs, written: Written) -> str:
    """A table of the winners of all prompts by all searches, and their means."""
    lines: list[list[object]] = []
    for name, results in runs.items():
        for result, files in zip(results, written[name], strict=True):
            drafts = result.spent.cost.draft_calls
            words = [numbers(scores_of(result.best)), str(files[0])] if files else ["no image", ""]
            lines.append([result.prompt[:60], name, drafts, *words])
        best = [scores_of(result.best) for result in results if result.images]
        if len(best) > 1:
            common = [key for key in best[0] if all(key in scores for scores in best)]
            means = {key: fmean(scores[key] for scores in best) for key in common}
            lines.append(["mean", name, "", numbers(means), ""])
    table = markdown(["prompt", "algorithm", "drafts", "scores", "file"], lines, left=range(5))
    if len({_drafted(result) for results in runs.values() for result in results}) > 1:
        table += "\ndrafts count in the budget; --draft none compares the searches without them"
    return table


def write_images_table(path: Path, runs: Runs, written: Written) -> None:
    """Write a CSV table of all images: prompt, algorithm, rank, seed, scores, evaluations, drafts,
    and the file, as seen from the table."""
    rows: list[dict[str, Any]] = []
    for name, results in runs.items():
        for result, files in zip(results, written[name], strict=True):
            spent = result.spent
            for rank, (image, file) in enumerate(zip(result.images, files, strict=True), 1):
                own = {"prompt": result.prompt, "algorithm": name, "rank": rank, "seed": image.seed}
                own |= {"nfe": spent.nfe, "drafts": spent.cost.draft_calls}
                own["file"] = file.relative_to(path.parent)
                rows.append({**own, **scores_of(image), **own})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(path, columns, [[row.get(key, "") for key in columns] for row in rows])


def with_answers(
    result: Result, rewards: Sequence[Any], names: Sequence[str], prompt: str
) -> Result:
    """The result with the scores of a checklist's items by what was asked of this prompt.

    rewards, and their names: those of the search."""
    if not any(map(is_item, rewards)):
        return result
    items = asked_of(rewards, prompt)
    words_of = {at: words for words, at in items.items()}
    words_of |= {i: names[i] for i, spec in enumerate(rewards) if not is_item(spec)}
    images = []
    for image in result.images:
        scores = {words_of[i]: s for i, s in enumerate(image.scores.values()) if i in words_of}
        images.append(replace(image, scores=scores))
    return replace(result, images=tuple(images), asked=items)


def answer_lines(result: Result) -> list[str]:
    """A checklist as a table: whether the best image has each item, its answer, and how many
    finished images have it; no lines without a checklist."""
    wide = max(map(len, result.asked), default=0)
    finished = result.spent.finished
    best = result.images[0].scores if result.images else {}
    lines = list[str]()
    for words, had in result.answers.items():
        answer = best.get(words, math.nan)
        said = "no answer"
        if not math.isnan(answer):
            said = f"{'yes' if answer >= YES else 'no':<3} {answer:.2f} "
        lines.append(f"{words:<{wide}}  {said}  {had or 'none'} of {finished} images")
    return lines
