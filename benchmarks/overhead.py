"""What the search loop costs beside the network, what per-candidate scheduler steps cost, what
batching saves.

    python benchmarks/overhead.py --json overhead.json                        # medium networks; minutes on a CPU
    python benchmarks/overhead.py --size full --models sdxl flux --candidates 1 4 16 --steps 20     # on a GPU
    python benchmarks/overhead.py --parts loop --models embedded --candidates 8 32 64 --steps 20

Parts:

loop        N unpruned candidates through the search loop against the stock pipeline's own call at the same batch, from
            the same seeds, in turns. Networks have random weights (models.py); "embedded" is the
            one with weights.
schedulers  One step of a batch of 16: the stock scheduler's, ours at one position, ours at 16
different ones.
batching    Many prompts with pruning on the embedded model: all at once against one at a time, and how full the
            denoiser's batches are.

Ratios of one run on one machine; absolute times mean little elsewhere.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers import schedulers as stock_schedulers
from models import MODELS, Case, build
from torch import Tensor

from ttsnap import BestOfN, SeedPruning, __version__, pipelines, search
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines.latents.schedule import laid_open
from ttsnap.pipelines.memory.acceleration import compile_denoiser, network, use_attention
from ttsnap.pipelines.opening import placement
from ttsnap.reward_models.registry import make_rewards
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction
from ttsnap.scenes import sample_prompts

EMBEDDED = "embedded"
PARTS = ("loop", "schedulers", "batching")
ROWS = 16
COUNTED = ("cuda", "xpu")
"""Kinds of devices whose memory PyTorch counts, and that have a name; ROCm's are called cuda,
too."""
LATENTS = {"SDXL": (4, 128, 128), "FLUX.1": (4096, 64)}
SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


def nothing(images: Any, prompts: Any) -> Any:
    """A reward that takes no time, so that only the loop is measured."""
    return [0.0] * len(prompts)


# --- clocks ---------------------------------------------------------------------------------------


def settle(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    settle(device)
    begin = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - begin


class NetworkClock:
    """Seconds inside a module's calls, in every run of it. On accelerators by events in the stream,
    for which nobody waits.

    It stands around the module's `__call__`, outside of what is compiled and of offload hooks;
    forward hooks would be skipped by a network that is compiled whole.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        self._device, self._spans = device, list[tuple[Any, Any]]()
        clock, plain = self, type(module)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            begin = clock._mark()
            out = plain.__call__(self, *args, **kwargs)
            clock._spans.append((begin, clock._mark()))
            return out

        module.__class__ = type(plain.__name__, (plain,), {"__call__": call})

    def _mark(self) -> Any:
        if self._device.type != "cpu":
            event = torch.Event(self._device, enable_timing=True)
            event.record()
            return event
        settle(self._device)
        return time.perf_counter()

    def take(self) -> float:
        """Seconds since the last time it was asked."""
        settle(self._device)
        spans, self._spans = self._spans, []
        if self._device.type != "cpu":
            return float(sum(begin.elapsed_time(end) for begin, end in spans)) / 1000
        return float(sum(end - begin for begin, end in spans))


class Run(NamedTuple):
    """Wall time and the network's part of it in seconds; peak allocated memory in bytes, where
    PyTorch counts it."""

    seconds: float
    network: float
    memory: int | None

    @property
    def beside(self) -> float:
        return self.seconds - self.network


def measured(call: Callable[[], Any], clock: NetworkClock, device: torch.device) -> Run:
    gc.collect()
    clock.take()
    if device.type in COUNTED:
        torch.accelerator.reset_peak_memory_stats(device)
    seconds = timed(call, device)
    memory = torch.accelerator.max_memory_allocated(device) if device.type in COUNTED else None
    return Run(seconds, clock.take(), memory)


def in_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> Iterator[tuple[Any, Any]]:
    """Pairs of results, either one going first in turns, so that drift cancels."""
    for i in range(repeats):
        if i % 2:
            b = second()
            yield first(), b
        else:
            yield first(), second()


def median(values: Any) -> float:
    return float(np.median(list(values)))


# --- the loop -------------------------------------------------------------------------------------


def prepared(name: str, a: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Case:
    """A model's search pipeline where it is to run, and the arguments of its call."""
    home = device if a.offload == "none" else torch.device("cpu")
    if name == EMBEDDED:
        pipe = pipelines.load(dtype=dtype).to(home)
        pipe.set_progress_bar_config(disable=True)
        case = Case(pipe, {"prompt": sample_prompts(1, a.prompt_seed)[0], **pipelines.defaults()})
    else:
        case = build(name, a.size, home, dtype)
        pipe = pipelines.upgrade(case.pipe)
    if a.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif a.offload == "group":
        pipe.enable_group_offload(
            onload_device=device, offload_type="leaf_level", use_stream=device.type in COUNTED
        )
    if a.attention != "sdpa":
        print(f"{name}: attention by {use_attention(pipe, a.attention)}")
    if a.compile:
        compile_denoiser(pipe)
    call = {key: moved(value, device) for key, value in case.call.items()}
    return Case(pipe, {**call, "num_inference_steps": a.steps, "output_type": "pt"})


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [moved(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value


def rows_of(call: dict[str, Any], n: int) -> dict[str, Any]:
    """The stock call for n pictures. Embeddings are given n times: SD3 and Lumina2 do not repeat
    all of them."""
    if "prompt" in call:
        return {**call, "num_images_per_prompt": n}
    repeated: dict[str, Any] = {k: v * n for k, v in call.items() if isinstance(v, list)}
    repeated |= {k: v.repeat_interleave(n, 0) for k, v in call.items() if isinstance(v, Tensor)}
    return {**call, **repeated}


def compare(
    case: Case, n: int, clock: NetworkClock, a: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """The same n pictures by the stock call and by the search loop."""
    pipe, call = case.pipe, case.call
    texts = {} if "prompt" in call else {"reward_prompts": ""}

    def stock() -> Any:
        generators = [torch.Generator().manual_seed(i) for i in range(n)]
        return pipe(generator=generators, **rows_of(call, n)).images

    def ours() -> Any:
        options = {
            "search": BestOfN(n),
            "reward": nothing,
            "seed": 0,
            "num_images_per_prompt": n,
            **texts,
        }
        return pipe(**options, batch_size=n, decode_batch_size=n, **call).images

    # Once each beforehand: kernels are chosen, networks compiled, FLOPs counted.
    difference = float((stock().cpu().float() - ours().cpu().float()).abs().max())
    pairs = list(
        in_turns(
            lambda: measured(stock, clock, device), lambda: measured(ours, clock, device), a.repeats
        )
    )
    ratios = [o.seconds / s.seconds for s, o in pairs]
    seconds = median(s.seconds for s, _ in pairs)
    beside = [median(run.beside for run in runs) for runs in zip(*pairs, strict=True)]
    row = {
        "candidates": n,
        "stock_seconds": seconds,
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "network_share": median(s.network / s.seconds for s, _ in pairs),
        "beside_stock_seconds": beside[0],
        "beside_ours_seconds": beside[1],
        "added": (beside[1] - beside[0]) / seconds,
        "difference": difference,
    }
    if pairs[0][0].memory is not None:
        peaks = [max(run.memory for run in runs) for runs in zip(*pairs, strict=True)]
        row |= {
            "memory_stock": peaks[0],
            "memory_ours": peaks[1],
            "memory_ratio": peaks[1] / peaks[0],
        }
    return row


HEAD = (
    f"{'model':<13} {'N':>3} {'GFLOP':>8} {'stock s':>8} {'ratio':>6} {'min':>6} {'max':>6}"
    f" {'network':>8} "
)
HEAD += f"{'beside ms':>15} {'added':>7} {'count s':>8} {'differ':>8} {'memory':>7}"


def line(row: dict[str, Any]) -> str:
    beside = f"{1e3 * row['beside_stock_seconds']:.1f}/{1e3 * row['beside_ours_seconds']:.1f}"
    memory = f"{row['memory_ratio']:.3f}" if "memory_ratio" in row else "-"
    return (
        f"{row['model']:<13} {row['candidates']:>3} {row['gflop']:>8.1f}"
        f" {row['stock_seconds']:>8.3f} {row['ratio']:>6.3f} {row['ratio_min']:>6.3f}"
        f" {row['ratio_max']:>6.3f} {row['network_share']:>8.1%} {beside:>15} {row['added']:>+7.2%}"
        f" {row['counting_seconds']:>8.2f} {row['difference']:>8.1g} {memory:>7}"
    )


def loop_costs(
    a: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """A row for every model and number of candidates, or one that says why there is none."""
    print(HEAD)
    for name in a.models:
        why = missing(name, a.size)
        try:
            if why is not None:
                print(f"{name}: skipped, {why}")
                yield {"model": name, "skipped": why}
                continue
            for row in model_costs(name, a, device, dtype):
                print(line(row), flush=True)
                yield row
        except Exception as error:  # the other models are still worth having
            why = f"{type(error).__name__}: {str(error).strip()[:300]}"
            print(f"{name}: failed, {why}")
            yield {"model": name, "failed": why}
        gc.collect()
        if device.type != "cpu":
            torch.accelerator.empty_cache()


def missing(name: str, size: str) -> str | None:
    """Why this model cannot be measured, if so."""
    if name == EMBEDDED:
        return None
    return (
        f"it has no {size} configuration" if size == "full" and MODELS[name].full is None else None
    )


def model_costs(
    name: str, a: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    case = prepared(name, a, device, dtype)
    denoiser = case.pipe.denoiser(
        **{k: v for k, v in case.call.items() if k not in ("prompt", "output_type")}
    )
    begin = time.perf_counter()
    flops = denoiser.costs().nfe
    counting = time.perf_counter() - begin
    clock = NetworkClock(network(case.pipe), device)
    for n in a.candidates:
        known = {"model": name, "gflop": flops / 1e9, "counting_seconds": counting}
        yield {**known, **compare(case, n, clock, a, device)}


# --- scheduler steps ------------------------------------------------------------------------------


def step_costs(
    a: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Milliseconds of one step of a batch of ROWS, for every scheduler and size of latents."""
    print(
        f"{'scheduler':<32} {'latents':<7} {'stock ms':>9} {'one position':>13}"
        f" {'16 positions':>13}"
    )
    for name in SCHEDULERS:
        for model, shape in LATENTS.items():
            x, out = (torch.randn(ROWS, *shape, device=device).to(dtype) for _ in range(2))
            calls = {
                "stock": stock_step(name, x, out, device),
                "one": our_step(name, x, out, torch.full((ROWS,), ROWS // 2)),
                "many": our_step(name, x, out, torch.arange(ROWS)),
            }
            times: dict[str, list[float]] = {how: [] for how in calls}
            for _ in range(3 * a.repeats + 1):
                for how, prepare in calls.items():
                    times[how].append(1e3 * timed(prepare(), device))
            row = {
                "scheduler": name,
                "latents": model,
                **{f"{k}_ms": median(v[1:]) for k, v in times.items()},
            }
            print(
                f"{name:<32} {model:<7} {row['stock_ms']:>9.2f} {row['one_ms']:>13.2f}"
                f" {row['many_ms']:>13.2f}"
            )
            yield row


def stock_step(
    name: str, x: Tensor, out: Tensor, device: torch.device
) -> Callable[[], Callable[[], Any]]:
    """A maker of calls: one stock step in the middle of a schedule, after those that its history
    holds."""
    scheduler = getattr(stock_schedulers, name)()
    scheduler.set_timesteps(2 * ROWS, device=device)
    scheduler.is_scale_input_called = True  # Euler warns without

    def step(own: Any, position: int) -> Any:
        takes = inspect.signature(own.step).parameters
        extra = {"generator": [rng.seeded(i) for i in range(ROWS)]} if "generator" in takes else {}
        return lambda: own.step(out, own.timesteps[position], x, return_dict=False, **extra)

    for position in range(ROWS // 2):
        step(scheduler, position)()
    return lambda: step(copy.deepcopy(scheduler), ROWS // 2)


def our_step(name: str, x: Tensor, out: Tensor, k: Tensor) -> Callable[[], Callable[[], Any]]:
    """A maker of calls: one step of our kernel, of rows that have come to their positions k (ROWS,)
    step by step."""
    scheduler = getattr(stock_schedulers, name)()
    scheduler.set_timesteps(2 * ROWS)
    scheduler.set_begin_index(0)
    kernel = laid_open(scheduler).kernel

    def keys(at: Tensor) -> list[rng.Key]:
        return [(i, 0, position) for i, position in enumerate(at.tolist())]

    state = [kernel.init(x[i], (i, 0), rng.seeded(i)) for i in range(ROWS)]
    for position in range(int(k.max()) if kernel.keeps_history else 0):
        here = (k > position).nonzero()[:, 0].tolist()
        at = torch.full((ROWS,), position)
        names, kept = [keys(at)[i] for i in here], [state[i] for i in here]
        _, kept = kernel.step(x[here], Prediction(out[here], out[here]), at[here], names, kept)
        for i, after in zip(here, kept, strict=True):
            state[i] = after
    return lambda: lambda: kernel.step(x, Prediction(out, out), k, keys(k), state)


# --- batching -------------------------------------------------------------------------------------


def batching(
    a: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Many prompts with pruning, all at once and one at a time."""
    pipe = pipelines.load(dtype=dtype).to(device)
    call = {**pipelines.defaults(), "num_inference_steps": a.batching_steps}
    prompts, algorithm = sample_prompts(a.prompts, a.prompt_seed), SeedPruning(a.seeds)

    def engine() -> LiveEngine:
        rewards = make_rewards("scenes", device=device)
        return LiveEngine(
            pipe.denoiser(**call),
            rewards,
            EngineOptions(a.batch_size, decode_batch_size=a.batch_size),
        )

    def apart(own: LiveEngine) -> None:
        for prompt in prompts:
            search([prompt], algorithm, own)

    search(prompts[:1], algorithm, engine())
    seconds = []
    ways: Sequence[tuple[str, Callable[[LiveEngine], Any]]] = (
        ("all prompts at once", lambda own: search(prompts, algorithm, own)),
        ("one at a time", apart),
    )
    for how, run in ways:
        own = engine()
        seconds.append(timed(functools.partial(run, own), device))
        share = own.stats["nfe"] / own.room
        print(
            f"{how}: {seconds[-1]:.1f} s, {own.stats['batches']} batches, occupancy {share:.0%}",
            flush=True,
        )
        yield {"how": how, "seconds": seconds[-1], "occupancy": share, **dict(own.stats)}
    print(f"one at a time / all at once: {seconds[1] / seconds[0]:.2f}")


# --- the command ----------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [EMBEDDED, *MODELS]
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    p.add_argument("--repeats", type=int, default=7, help="pairs of runs (default 7)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu")
    p.add_argument(
        "--dtype",
        default="auto",
        help=(
            "auto (bfloat16; float32 on a CPU without its instructions), float32, bfloat16, float16"
        ),
    )
    p.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    loop = p.add_argument_group("loop")
    loop.add_argument("--models", nargs="+", choices=known, help="default: all that have the size")
    loop.add_argument("--size", choices=("tiny", "medium", "full"), default="medium")
    loop.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[4],
        metavar="N",
        help="batch sizes (default 4)",
    )
    loop.add_argument("--steps", type=int, help="default 4, of full networks 20")
    loop.add_argument("--compile", action="store_true", help="compile the denoiser, for both calls")
    loop.add_argument(
        "--attention",
        default="sdpa",
        help="attention kernels, for both calls: sdpa, xformers, flash",
    )
    loop.add_argument(
        "--offload", choices=("none", "model", "group"), default="none", help="for both calls"
    )
    b = p.add_argument_group("batching")
    b.add_argument("--prompts", type=int, default=16)
    b.add_argument("--seeds", type=int, default=24, help="per prompt")
    b.add_argument("--batch-size", type=int, default=32)
    b.add_argument("--batching-steps", type=int, default=20)
    b.add_argument("--prompt-seed", type=int, default=0)
    a = p.parse_args()
    a.models = a.models or [
        n for n in known if a.size != "full" or (n in MODELS and MODELS[n].full)
    ]
    a.steps = a.steps or (20 if a.size == "full" else 4)
    return a


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "device": (
            torch.get_device_module(device).get_device_name(device)
            if device.type in COUNTED
            else device.type
        ),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "ttsnap": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def main() -> None:
    a = arguments()
    device, dtype = placement(a.device, a.dtype)
    if a.offload != "none" and device.type == "cpu":
        raise SystemExit(
            f"--offload {a.offload} moves parts between a GPU and RAM, but the device is {device}"
        )
    diffusers.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    out: dict[str, Any] = {"machine": machine(device, dtype), "options": vars(a)}
    print(", ".join(f"{name} {value}" for name, value in out["machine"].items()))
    if device.type not in COUNTED:
        print("no memory ratios: PyTorch does not count what is allocated here")
    parts = {"loop": loop_costs, "schedulers": step_costs, "batching": batching}
    for part in (name for name in PARTS if name in a.parts):
        print(f"\n{part}")
        out[part] = []
        for row in parts[part](a, device, dtype):
            out[part].append(row)
            if a.json:  # after every row, since later ones may run out of memory or patience
                a.json.write_text(json.dumps(out, indent=1, default=str))
    if any("failed" in row for row in out.get("loop", ())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
