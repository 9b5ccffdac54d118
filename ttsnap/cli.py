"""The command line: `ttsnap generate`, `ttsnap replay`. No logic of its own, and nothing heavy before it is needed."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ttsnap.version import __version__

GENERATE = """Find the best image for a prompt that a compute budget can buy.

examples:
  ttsnap generate "two red circles and a blue square" --budget 400nfe
  ttsnap generate "a photo of a cat" --model stabilityai/stable-diffusion-3.5-medium --reward my_reward.py:score \\
      --budget 2pflop --algorithm seed-pruning
  ttsnap generate --prompts-file prompts.txt --budget 200nfe --keep 4 --out results
"""
REPLAY = """Make one image again, alone, from the metadata in its PNG.

example:
  ttsnap replay outputs/0001-two-red-circles/01-seed7.png
"""


def build_parser() -> ArgumentParser:
    """The whole command line, without importing torch."""
    parser = ArgumentParser(
        prog="ttsnap",
        version=f"ttsnap {__version__}",
        formatter_class=_formatter(),
        description="Better images from frozen text-to-image models, by spending inference compute on purpose.",
    )
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("generate", _generate_parser(), help="find the best image for a prompt under a budget")
    commands.add_subcommand("replay", _replay_parser(), help="make one image again from its PNG")
    return parser


def _generate_parser() -> ArgumentParser:
    p = ArgumentParser(description=GENERATE, formatter_class=_formatter())
    p.add_argument("prompts", nargs="*", default=[], help="one or more prompts, each quoted")
    p.add_argument("--config", action="config", help="YAML or JSON file with the same keys as these options")
    p.add_argument("--prompts-file", type=str | None, help="text file, one prompt a line; # starts a comment")
    p.add_argument("--model", type=str, default="embedded", help="embedded, a diffusers folder, or a hub id")
    p.add_argument(
        "--algorithm",
        type=str,
        default="seed-pruning",
        help="best-of-n, seed-pruning (late checks, for ordinary rewards), ttsnap (early checks, for noise-aware "
        "rewards), or a .json file",
    )
    p.add_argument(
        "--options",
        type=dict[str, Any],
        default={},
        help="the algorithm's settings, as --options.n 16 --options.keep '[0.5, 0.25]' --options.steps '[6, 11]'",
    )
    p.add_argument(
        "--budget",
        type=str | int,
        default="400nfe",
        help="per prompt: 400nfe (denoiser evaluations), 2pflop, 30s, 5min, or several as 400nfe,30s",
    )
    p.add_argument("--shared", action="store_true", help="let all prompts draw on one pot of that size each")
    p.add_argument(
        "--reward",
        type=str | list[str] | None,
        help="what to search for: scenes (the embedded world's checker), file.py:function, module:attribute, or a "
        "list of them; a function takes (images (N, 3, H, W) in [0, 1], prompts) and returns N scores",
    )
    p.add_argument(
        "--utility", type=str | list[float], default="mean", help="of several rewards: mean, rank_sum or weights"
    )
    p.add_argument("--report", type=str | list[str] | None, help="rewards that only report on the kept images")
    p.add_argument("--steps", type=int | None, help="denoising steps (the model's default where not given)")
    p.add_argument("--guidance", type=float | None, help="classifier-free guidance scale")
    p.add_argument("--negative-prompt", type=str | None, help="what not to show, for all prompts")
    p.add_argument("--height", type=int | None, help="pixels")
    p.add_argument("--width", type=int | None, help="pixels")
    p.add_argument("--call", type=dict[str, Any], default={}, help="more pipeline arguments, as --call.clip_skip 1")
    p.add_argument("--kernel", type=str, default="pipeline", help="pipeline (its own scheduler), ode, or sde")
    p.add_argument("--seed", type=int, default=0, help="candidate i starts from seed + i")
    p.add_argument("--keep", type=int, default=1, help="how many of the best images to write, ranked")
    p.add_argument("--out", type=str | None, help="folder to write to (default: a new one in outputs/)")
    p.add_argument("--overwrite", action="store_true", help="allow --out to hold files already")
    _device_arguments(p)
    p.add_argument("--batch-size", type=int, default=32, help="most candidates per denoiser call")
    p.add_argument("--decode-batch-size", type=int | None, help="most images per decode (default: the batch size)")
    return p


def _replay_parser() -> ArgumentParser:
    p = ArgumentParser(description=REPLAY, formatter_class=_formatter())
    p.add_argument("image", type=str, help="a PNG written by ttsnap")
    p.add_argument("--model", type=str | None, help="use this model instead of the one named in the PNG")
    p.add_argument("--out", type=str | None, help="where to write (default: NAME.replay.png beside the image)")
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    _device_arguments(p)
    return p


def _device_arguments(p: ArgumentParser) -> None:
    p.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument(
        "--dtype", type=str, default="auto", help="auto (cpu: float32, else bfloat16), float32, bfloat16, float16"
    )


def _formatter() -> Any:
    import argparse

    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the examples' line breaks."""

    return Formatter


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 with one line of explanation for bad input."""
    arguments = build_parser().parse_args(argv)
    command: Callable[[Namespace], int] = {"generate": _generate, "replay": _replay}[arguments.command]
    try:
        return command(arguments[arguments.command])
    except ValueError as error:
        print(f"ttsnap: error: {error}", file=sys.stderr)
        return 2


def _generate(a: Namespace) -> int:
    from ttsnap import outputs

    prompts = _prompts(a.prompts, a.prompts_file)
    reward, report = a.reward, a.report
    if reward is None:
        if a.model != "embedded":
            raise ValueError(f"model {a.model} needs a --reward: file.py:function, module:attribute or a known name")
        reward, report = "scenes", report or "scenes-strict"
    from ttsnap.algorithms import make_algorithm
    from ttsnap.budget import Budget
    from ttsnap.pipelines import defaults
    from ttsnap.rewards import make_rewards
    from ttsnap.scenes import caption, parse
    from ttsnap.types import Grid

    # What can be refused is refused before the model is loaded.
    algorithm, budget = make_algorithm(a.algorithm, **a.options), Budget.parse(a.budget)
    if a.model == "embedded":  # in the words and the form that it was trained on
        prompts = [caption(parse(prompt)) for prompt in prompts]
    out = outputs.prepare_folder(Path(a.out) if a.out else None, prompts[0], a.overwrite)
    reward, report = make_rewards(reward), make_rewards(report) if report else None
    call = {
        **defaults(a.model),
        **{
            k: v
            for k, v in {
                "num_inference_steps": a.steps,
                "guidance_scale": a.guidance,
                "negative_prompt": a.negative_prompt,
                "height": a.height,
                "width": a.width,
            }.items()
            if v is not None
        },
        **a.call,
    }
    pipe = _load(a.model, a.device, a.dtype)
    takes = [name for name in inspect.signature(type(pipe).denoiser_class).parameters if name != "pipe"]
    if set(call) - set(takes):
        raise ValueError(f"unknown argument(s) {sorted(set(call) - set(takes))} for this pipeline; it takes {takes}")
    recorder, stop = outputs.Recorder(), _StopOnInterrupt()
    with stop:
        output = pipe(
            prompts,
            search=algorithm,
            reward=reward,
            report=report,
            budget=budget,
            utility=a.utility,
            kernel=a.kernel,
            seed=a.seed,
            num_images_per_prompt=a.keep,
            batch_size=a.batch_size,
            decode_batch_size=a.decode_batch_size,
            shared=a.shared,
            on_event=recorder,
            should_stop=stop,
            output_type="pt",
            **call,
        )
    settings = {
        "ttsnap": __version__,
        "model": a.model,
        "sampler": type(pipe.scheduler).__name__,
        "kernel": a.kernel,
        "call": call,
        "algorithm": a.algorithm,
        "options": dict(a.options),
        "budget": str(a.budget),
        "reward": [r.name for r in reward],
        "utility": a.utility,
        "seed": a.seed,
    }
    grid: Grid = pipe.denoiser(**call).grid
    written = outputs.write_results(out, output.search, grid, recorder, settings)
    for result, paths in zip(output.search, written, strict=True):
        _describe(result, paths, call, a)
    print(f"\ncontact sheet and trace in {out}")
    return 0


def _replay(a: Namespace) -> int:
    import numpy as np
    from PIL import Image

    from ttsnap import BestOfN, outputs

    path = Path(a.image)
    payload = outputs.read_payload(path)
    out = Path(a.out) if a.out else path.with_suffix(".replay.png")
    if out.exists() and not a.overwrite:
        raise ValueError(f"{out} exists; choose another --out, or pass --overwrite")
    pipe = _load(a.model or payload["model"], a.device, a.dtype)
    output = pipe(
        payload["prompt"],
        search=BestOfN(1),
        reward=_no_reward,
        kernel=payload["kernel"],
        seed=int(payload["seed"]),
        output_type="pt",
        **payload["call"],
    )
    outputs.save_image(out, output.images[0], payload)
    with Image.open(path) as picture:
        before = np.asarray(picture.convert("RGB"), int)
    after = outputs.to_uint8(output.images[0]).astype(int)
    if before.shape != after.shape:
        raise ValueError(f"{path} has size {before.shape[:2]}, its replay {after.shape[:2]}; is it the original file?")
    print(f"wrote {out}; largest difference from {path.name}: {abs(before - after).max()} of 255")
    return 0


def _no_reward(images: Any, prompts: Any) -> Any:
    return [0.0] * len(prompts)


def _load(model: str, device: str, dtype: str) -> Any:
    import torch

    from ttsnap.pipelines import load

    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found.type if found is not None else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}; choose auto, float32, bfloat16 or float16")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    with _quiet() if model == "embedded" else nullcontext():
        return load(model, dtype=getattr(torch, dtype)).to(place)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading bars of diffusers and transformers: the embedded model loads at once."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    yield
    for library in (diffusers_logging, transformers_logging):
        library.enable_progress_bar()


def _prompts(given: Sequence[str], file: str | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read prompts file {file}: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        prompts += [line for line in lines if line and not line.startswith("#")]
        if not prompts:
            raise ValueError(f"prompts file {file} holds no prompt; write one a line")
    if not prompts:
        raise ValueError('no prompt: ttsnap generate "a red circle", or --prompts-file FILE')
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError(f"prompt {[p.strip() for p in prompts].index('') + 1} of {len(prompts)} is empty")
    return prompts


class _StopOnInterrupt:
    """The first Ctrl-C ends the search with its best finished image; a second one aborts as usual."""

    def __enter__(self) -> _StopOnInterrupt:
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)
        print("\nstopping; the best finished image will be written (Ctrl-C again to abort)", file=sys.stderr)

    def __call__(self) -> bool:
        return self._asked


def _describe(result: Any, paths: Sequence[Path], call: dict[str, Any], a: Namespace) -> None:
    s = result.spent
    print(f"\n{result.prompt}")
    for warning in result.warnings:
        print(f"  warning: {warning}")
    for rank, (candidate, path) in enumerate(zip(result.images, paths, strict=True), 1):
        numbers = {**candidate.scores, **candidate.metrics}
        scores = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        print(f"  {rank}. seed {candidate.seed}: {scores}   {path}")
    counts = f"{s['nfe']} NFE ({s['forward_passes']} forward passes), {s['decodes']} decodes"
    print(f"  spent {counts} and {s['reward_calls']} reward calls of a budget of {s['budget']}")
    print(f"  {s['seeds']} seeds started, {s['finished']} finished")
    flops = s["flops"] or 1.0
    print(
        f"  {s['flops'] / 1e12:.4g} TFLOPs: {s['flops_denoise'] / flops:.0%} denoiser, {s['flops_decode'] / flops:.0%} "
        f"decoder, {s['flops_reward'] / flops:.0%} reward; {s['seconds']:.1f} s: {_share(s, 'denoise')} denoiser, "
        f"{_share(s, 'decode')} decoder, {_share(s, 'reward')} reward"
    )
    if result.images and a.kernel == "pipeline":
        arguments = "".join(f", {k}={v!r}" for k, v in call.items())
        seed = result.best.seed
        print("  the winner in plain diffusers:")
        print(f"    pipe({result.prompt!r}{arguments}, generator=torch.Generator().manual_seed({seed}))")


def _share(spent: dict[str, Any], phase: str) -> str:
    return f"{spent[f'seconds_{phase}'] / (spent['seconds'] or 1.0):.0%}"
