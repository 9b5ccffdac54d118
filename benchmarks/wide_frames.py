"""What a search takes beside the network, where frames of several images are denoised in lockstep.

    python benchmarks/wide_frames.py --json wide_frames.json     # minutes on a CPU
    python benchmarks/wide_frames.py FluxPipeline WanPipeline

Pipelines are those of support_parts.py, on tiny parts. The columns:

wide        how a stock call makes several images of a prompt: the argument that says how many,
            lists of prompts, or not at all
opening     milliseconds that a search takes before its first row, where a call like it was searched
            before
ms          milliseconds a row and step of eight rows in lockstep; the network answers with zeros,
            at once after the first batch of a shape
tiny        time of best-of-N of eight seeds over that of one stock call of eight images, with the
            tiny network
80 ms       the same with a network that answers with zeros, each call of which counts as 80 ms

All are CPU times of one thread, which other processes hardly change. Ratios are of medians, of
pairs that run in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from overhead import in_turns, median, nothing
from support_parts import Case, stock

from ttsnap import BestOfN
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.values import mapped, shape_of, tensors_in
from ttsnap.pipelines.quiet import quiet
from ttsnap.rewards.reward_model import RewardError
from ttsnap.sampling.rng import seeded

CLASSES = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"),
    *("FluxPipeline", "PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline"),
    *("ZImagePipeline", "Lumina2Pipeline", "Flux2KleinPipeline"),
    *("StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline"),
    *("FluxKontextPipeline", "WanPipeline", "CogVideoXPipeline"),
)
ROWS = 8
STEPS = 8
PROMPT = "a red fox"
SLOW = 0.08
"""Seconds of a call of a network that is not tiny."""


@contextmanager
def zeros(net: Any) -> Iterator[list[None]]:
    """A network that answers with zeros, in what it made of the first call of that shape; a list
    with an entry for each call."""
    calls = list[None]()
    kind: Any = type(net)
    known: dict[Any, Any] = {}

    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = tensors_in((args, kwargs))
        if any(each.is_meta for each in given):  # FLOPs are counted
            return kind.forward(self, *args, **kwargs)
        rows = [len(each) for each in given if each.ndim]
        key = (*rows, shape_of(args), shape_of(kwargs))
        if key not in known:
            known[key] = mapped(kind.forward(self, *args, **kwargs), torch.zeros_like)
        calls.append(None)
        return known[key]

    net.__class__ = type(kind.__name__, (kind,), {"forward": answer})
    try:
        yield calls
    finally:
        net.__class__ = kind


def beside(denoiser: Any, repeats: int) -> float:
    """Milliseconds a row and step, the best of some runs."""
    denoiser.encode([PROMPT])
    seeds = list(range(ROWS))
    cond = denoiser.conditions(torch.zeros(ROWS, dtype=torch.long), seeds)
    x = denoiser.begin(denoiser.init_latents([seeded(seed) for seed in seeds]), cond)

    def step(numbers: range) -> None:
        for k in numbers:
            denoiser.predict(x, torch.full((ROWS,), k), cond)

    steps = denoiser.grid.steps
    best = float("inf")
    with zeros(denoiser.net):
        step(range(steps))  # the network's answers, and trials of joining
        denoiser.trim(0)
        for _ in range(repeats):
            step(range(2))
            began = time.process_time()
            step(range(2, steps))
            best = min(best, time.process_time() - began)
            denoiser.trim(0)
    return 1e3 * best / (steps - 2) / ROWS


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds by this clock."""
    began = clock()
    run()
    return clock() - began


def ratio(case: Case, denoiser: Any, clock: Callable[[], float], repeats: int) -> float:
    """Time of best-of-N of eight seeds over that of a stock call of eight images."""
    pipe = upgrade(case.pipe)
    call = {"prompt": PROMPT, **case.call, "num_inference_steps": STEPS, "output_type": "pt"}
    wide = denoiser._widening.of(call, ROWS)

    def one_call() -> None:
        generators = [seeded(seed) for seed in range(ROWS)]
        case.pipe(generator=generators, **wide)

    def search() -> None:
        how = {"search": BestOfN(ROWS), "reward": nothing, "seed": 0}
        pipe(**how, batch_size=ROWS, decode_batch_size=ROWS, **call)

    one_call()
    search()
    pairs = list(in_turns(lambda: timed(one_call, clock), lambda: timed(search, clock), repeats))
    return median(ours for _, ours in pairs) / median(stock for stock, _ in pairs)


def measured(name: str, repeats: int) -> dict[str, Any]:
    """A line of the table."""
    torch.manual_seed(0)
    with quiet("diffusers"):
        case = stock(name)
    call = {key: value for key, value in case.call.items() if key != "prompt"}
    pipe = upgrade(case.pipe)

    def opened() -> Any:
        return pipe.denoiser(**{**call, "num_inference_steps": STEPS})

    denoiser = opened()
    line: dict[str, Any] = {"class": name, "wide": "-"}
    line["opening"] = 1e3 * median(timed(opened) for _ in range(repeats))
    line["ms"] = beside(denoiser, repeats)
    if denoiser._widening is None:
        return line
    line["wide"] = denoiser._widening.number or "lists"
    with suppress(RewardError):  # Lumina 2 makes nan of these parts
        line["tiny"] = ratio(case, denoiser, time.process_time, repeats)
    with zeros(denoiser.net) as calls:

        def clock() -> float:
            return time.process_time() + SLOW * len(calls)

        line["80 ms"] = ratio(case, denoiser, clock, repeats)
    return line


@torch.no_grad()
def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("classes", nargs="*", default=list(CLASSES), metavar="CLASS")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    lines = []
    print("| class | wide | opening | ms | tiny | 80 ms |\n|---|---|---|---|---|---|")
    for name in args.classes:
        line = measured(name, args.repeats)
        lines.append(line)
        ratios = [f"{line[key]:.2f}" if key in line else "-" for key in ("tiny", "80 ms")]
        times = f"{line['opening']:.0f} | {line['ms']:.3f}"
        print(f"| {name} | {line['wide']} | {times} | {' | '.join(ratios)} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
