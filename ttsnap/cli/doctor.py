"""`ttsnap doctor`: what is installed, what a minute of search buys, and what is broken."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from ttsnap.cli import arguments, common
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.extras import install
from ttsnap.options.model import ModelOptions

DESCRIPTION = """Say what is here, what a minute of search buys, and what is wrong, one line each.

It shows the device and its memory, whether bfloat16 is fast on it, which extras are installed, and how many
evaluations and images of a model a minute makes, measured in seconds. The exit status is 1 where something is broken.

examples:
  ttsnap doctor
  ttsnap doctor --model stabilityai/stable-diffusion-3.5-medium
"""
EXTRAS = {
    "demo": "ttsnap demo",
    "service": "ttsnap serve",
    "tracing": "its traces",
    "serve": "ttsnap serve-reward",
    "cluster": "several devices",
    "distill": "ttsnap distill, drafts",
    "rewards": "open_clip rewards",
    "ocr": "text in images",
    "safe": "what is safe for work",
    "judge": "judges behind an API",
    "video": "mp4",
    "plot": "charts",
    "energy": "joules of an NVIDIA GPU",
    "xformers": "its attention",
}
"""The extras that users may want, and what for."""
ATTENTION = {"xformers": "xformers", "flash_attn": "flash", "flash_attn_interface": "_flash_3", "sageattention": "sage"}
"""Modules that bring attention kernels, and what --attention calls those."""
STEPS, SEEDS, SLOW = 4, 16, 1.0
"""The search that is measured: its steps and images; with more seconds an evaluation than SLOW, it makes one image."""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    arguments.add_options(p, ModelOptions, "model", "lora", "device", "dtype")
    return p


def run(a: Arguments) -> int:
    """Print a line for each check; 1 where something is broken."""
    place, kind = common.opening().placement(a.device, a.dtype)
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _versions,
        "device": lambda: _device(place),
        "bfloat16": lambda: _bfloat16(place),
        "extras": _extras,
        "attention": _attention,
        "edits, video": _modular,
        "model": lambda: _measured(a, str(kind).removeprefix("torch.")),
    }
    broken: list[str] = []
    for title, check in checks.items():
        head = title
        try:
            for line in check():
                print(f"{head:<14}{line}", flush=True)
                head = ""
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            broken.append(f"{title}: {' '.join(str(error).split())[:400]}")
    broken += _wrong(place)
    print("\n".join(["", "wrong:", *(f"  {line}" for line in broken)] if broken else ["", "nothing is wrong"]))
    return 1 if broken else 0


def _versions() -> Iterator[str]:
    names = ("ttsnap", "torch", "diffusers", "transformers")
    known = [f"{name} {importlib.metadata.version(name)}" for name in names]
    yield f"{', '.join(known)}, Python {platform.python_version()}"
    if wrong := unmet(importlib.metadata.requires("ttsnap") or ()):
        raise ValueError(f"{', '.join(wrong)}; install what ttsnap needs again")


def unmet(requirements: Any, extra: str = "") -> list[str]:
    """The requirements of an extra ("" for the core) that are not installed, or not in a version that does."""
    from packaging.requirements import Requirement

    wrong = []
    for needed in map(Requirement, requirements):
        ours = needed.marker is None if not extra else "extra" in str(needed.marker)
        if not ours or (needed.marker is not None and not needed.marker.evaluate({"extra": extra})):
            continue
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} {found} is not {needed.specifier}")
    return wrong


def _device(place: Any) -> Iterator[str]:
    import torch

    common.opening().check_here(place)
    if place.type == "cpu":
        pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES") if name in os.sysconf_names}
        sizes = [f"{count * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB" for count in pages.values()]
        memory = ", ".join(f"{size} {word}" for size, word in zip(sizes, ("of memory", "free"), strict=False))
        yield f"cpu, {torch.get_num_threads()} threads" + (f", {memory}" if memory else "")
        return
    free, whole = (f"{count / 2**30:.0f} GiB" for count in torch.accelerator.get_memory_info(place))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    yield f"{place}, {name}, {whole} of memory, {free} free; {torch.accelerator.device_count()} such devices"


def _bfloat16(place: Any) -> Iterator[str]:
    import torch

    share = _seconds_of_products(place, torch.bfloat16) / _seconds_of_products(place, torch.float32)
    auto = str(common.opening().placement(str(place), "auto")[1]).removeprefix("torch.")
    word = "fast" if share < 0.8 else "no faster than float32"
    yield f"{word} here: products of matrices take {share:.2f} of float32's time; --dtype auto is {auto}"


def _seconds_of_products(place: Any, dtype: Any) -> float:
    """The least seconds of several products of matrices, which take most of a denoiser's time."""
    import torch

    matrix, least = torch.ones(768, 768, device=place, dtype=dtype), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits until it is done
        least = min(least, time.perf_counter() - begin)
    return least


def _extras() -> Iterator[str]:
    needed = importlib.metadata.requires("ttsnap") or ()
    lacks = {extra: unmet(needed, extra) for extra in EXTRAS}
    yield f"there: {', '.join(extra for extra, wrong in lacks.items() if not wrong) or 'none'}"
    for extra, wrong in lacks.items():
        if wrong:
            yield f"not there: {extra} (for {EXTRAS[extra]}): {install(extra)}"


def _attention() -> Iterator[str]:
    found = [name for module, name in ATTENTION.items() if importlib.util.find_spec(module) is not None]
    yield ", ".join(["sdpa", *found])


def _modular() -> Iterator[str]:
    from ttsnap.pipelines.modular.workflows import check_version

    check_version()
    yield "work with this version of diffusers"


def _measured(a: Arguments, dtype: str) -> Iterator[str]:
    """Load the model, run short searches, and tell what a minute buys. ValueError where it cannot be loaded."""
    from ttsnap.algorithms import make_algorithm
    from ttsnap.pipelines import defaults

    pipe = common.load_model(a.model, a.device, a.dtype, loras=arguments.read(ModelOptions, a).loras)
    call = defaults(a.model)
    steps = int(call.pop("num_inference_steps", 0) or 0)
    pipe.set_progress_bar_config(disable=True)

    def spent(seeds: int, steps: int) -> Any:
        """What a search of so many images took; the reward, brightness, takes next to nothing."""
        found = pipe("a red circle", search=make_algorithm("best-of-n", n=seeds), reward="brightness", seed=0,
                     num_inference_steps=steps, **call)  # fmt: skip
        return found.search[0].spent

    first = spent(1, STEPS)  # also what only a first call takes
    slow = first.seconds > SLOW * STEPS
    taken = first if slow else spent(SEEDS, STEPS)
    step = taken.seconds_by["denoise"] / taken.cost.nfe
    rest = taken.seconds_by["decode"] / max(1, taken.cost.decodes)
    steps = steps or STEPS
    alone = "one image at a time" if slow else f"{SEEDS} images at a time"
    yield f"{a.model} in {dtype}, measured with {alone}"
    image = steps * step + rest
    nfe, images = _count(60 * steps / image), _count(60 / image)
    yield f"a minute buys about {nfe} evaluations (nfe): {images} images of {steps} steps"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _wrong(place: Any) -> list[str]:
    """What else would make searches fail or be slow."""
    wrong = []
    if place.type == "cpu" and shutil.which("nvidia-smi") is not None:
        wrong.append("there is an NVIDIA driver, but torch sees no GPU: install torch for CUDA (pytorch.org)")
    if not os.access(".", os.W_OK):
        wrong.append(f"nothing can be written to {os.getcwd()}, where outputs/ would be: give --out")
    if (free := shutil.disk_usage(".").free) < 2**30:
        wrong.append(f"{free / 2**20:.0f} MiB are free on the disk of {os.getcwd()}: images may not fit")
    return wrong
