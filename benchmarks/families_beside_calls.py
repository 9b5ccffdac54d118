"""What a family gives that its suspended stock calls do not: time beside the network, and memory.

    python benchmarks/families_beside_calls.py --json families.json     # minutes on a CPU

Each of the ten families is searched twice, by its own denoiser and by frames over its stock call.
The network answers with zeros, at once after the first batch of a shape. So the time is what a
search takes beside the network, for a row and step at 1, 8 and 32 rows. Memory is that of all
tensors of the process when so many rows wait in the middle of their calls, less what was there
before. Ratios of one run on one machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, build

from ttsnap.pipelines import search_class, upgrade
from ttsnap.pipelines.calls.values import mapped, shape_of, tensors_in
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.pipelines.quiet import quiet
from ttsnap.sampling.rng import seeded

ROWS = (1, 8, 32)
STEPS = 8
PROMPT = "a red fox"


def frames_over(pipe: Any) -> Any:
    """The same pipeline, searched by its stock call.

    Texts come as embeddings, so that no prompt is passed on.
    """
    twin = copied(pipe, search_class(type(pipe)))
    takes = dict(twin.stock_arguments())
    del takes["prompt"]
    vars(twin)["stock_arguments"] = lambda: takes
    return twin


@contextmanager
def at_once(net: Any) -> Iterator[None]:
    """A network that answers with zeros, in what it made of the first call of that shape."""
    kind: Any = type(net)
    known: dict[Any, Any] = {}

    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [len(each) for each in tensors_in((args, kwargs)) if each.ndim]
        key = (*rows, shape_of(args), shape_of(kwargs))
        if key not in known:
            known[key] = mapped(kind.forward(self, *args, **kwargs), torch.zeros_like)
        return known[key]

    net.__class__ = type(kind.__name__, (kind,), {"forward": answer})
    try:
        yield
    finally:
        net.__class__ = kind


def tensor_bytes() -> int:
    """Of all tensors of the process, each storage once."""
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def stepped(denoiser: Any, x: torch.Tensor, cond: torch.Tensor, steps: range) -> None:
    for k in steps:
        denoiser.predict(x, torch.full((len(x),), k), cond)


def measured(denoiser: Any, rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds a row and step, the best of some runs; KiB a row that waits in the middle."""
    denoiser.encode([PROMPT])
    cond = denoiser.conditions(torch.zeros(rows, dtype=torch.long), list(range(rows)))
    x = denoiser.begin(denoiser.init_latents([seeded(seed) for seed in range(rows)]), cond)
    stepped(denoiser, x, cond, range(STEPS))  # the network's answers, and trials of joining
    denoiser.trim(0)
    best = float("inf")
    for _ in range(repeats):
        stepped(denoiser, x, cond, range(2))
        began = time.perf_counter()
        stepped(denoiser, x, cond, range(2, STEPS))
        best = min(best, (time.perf_counter() - began) / (STEPS - 2) / rows)
        denoiser.trim(0)
    before = tensor_bytes()
    stepped(denoiser, x, cond, range(STEPS // 2))
    held = tensor_bytes() - before
    denoiser.trim(0)
    return {"ms": 1e3 * best, "kib": held / rows / 1024}


@torch.no_grad()
def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print("| family | " + " | ".join(f"{n} rows: ms, of frames, KiB" for n in ROWS) + " |")
    for name in args.families:
        with quiet("diffusers"):
            case = build(name, "tiny", torch.device("cpu"), torch.float32)
        call = {**case.call, "num_inference_steps": STEPS}
        denoisers = [pipe.denoiser(**call) for pipe in (upgrade(case.pipe), frames_over(case.pipe))]
        cells = []
        with at_once(denoisers[0].net):
            for rows in ROWS:
                family, frames = (measured(denoiser, rows, args.repeats) for denoiser in denoisers)
                found[f"{name}, {rows}"] = {"family": family, "frames": frames}
                cells.append(f"{family['ms']:.3f}, {frames['ms']:.3f}, {frames['kib']:.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
