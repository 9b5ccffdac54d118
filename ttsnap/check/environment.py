"""Environment: what is installed, which device is there, what a minute of search buys, and what is
broken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ttsnap.algorithms import make_algorithm
from ttsnap.check.cost import KERNELS, there
from ttsnap.check.ladder import in_short
from ttsnap.extras import install
from ttsnap.options.model import EMBEDDED
from ttsnap.pipelines import defaults
from ttsnap.pipelines.opening import check_here, placement

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
STEPS = 4
SEEDS = 16
"""The search of the embedded model that is measured: its steps and images."""


def environment(
    place: torch.device, say: Callable[[str], None], load: Callable[[], Any] | None = None
) -> list[str]:
    """Say a line for each thing that is here; what is broken is returned, a sentence each.

    load: makes the embedded model's pipeline, of which a short search is timed."""
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _versions,
        "device": lambda: _device(place),
        "extras": _extras,
        "attention": lambda: iter(
            [", ".join(["sdpa", *(name for module, name in KERNELS.items() if there(module))])]
        ),
    }
    if load is not None:
        checks["search"] = lambda: _measured(load())
    broken: list[str] = []
    for title, check in checks.items():
        head = title
        try:
            for line in check():
                say(f"{head:<14}{line}")
                head = ""
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            broken.append(f"{title}: {in_short(error)}")
    if place.type == "cpu" and shutil.which("nvidia-smi") is not None:
        broken.append(
            "there is an NVIDIA driver, but torch sees no GPU: install torch for CUDA (pytorch.org)"
        )
    return broken


def device_name(place: torch.device) -> str:
    """What figures hold for: the accelerator's name, or the processor's kind and the threads in
    use."""
    if place.type in ("cuda", "xpu"):  # ROCm's are called cuda, too
        return str(torch.get_device_module(place).get_device_name(place))
    threads = torch.get_num_threads()
    return (
        place.type
        if place.type != "cpu"
        else f"CPU {platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    )


def _versions() -> Iterator[str]:
    names = ("ttsnap", "torch", "diffusers", "transformers")
    known = [f"{name} {importlib.metadata.version(name)}" for name in names]
    yield f"{', '.join(known)}, Python {platform.python_version()}"
    if wrong := unmet(importlib.metadata.requires("ttsnap") or ()):
        raise ValueError(f"{', '.join(wrong)}; install what ttsnap needs again")


def unmet(requirements: Any, extra: str = "") -> list[str]:
    """The requirements of an extra ("" for the core) that are not installed, or not in a version
    that does."""
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


def _device(place: torch.device) -> Iterator[str]:
    check_here(place)
    dtype = str(placement(str(place), "auto")[1]).removeprefix("torch.")
    if place.type == "cpu":
        pages = {
            name: os.sysconf(name)
            for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
            if name in os.sysconf_names
        }
        sizes = [
            f"{count * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB" for count in pages.values()
        ]
        memory = "".join(
            f", {size} {word}" for size, word in zip(sizes, ("of memory", "free"), strict=False)
        )
        yield f"{device_name(place)}{memory}; --dtype auto is {dtype}"
        return
    free, whole = (f"{count / 2**30:.0f} GiB" for count in torch.accelerator.get_memory_info(place))
    yield f"{place}, {device_name(place)}, {whole} of memory, {free} free; --dtype auto is {dtype}"


def _extras() -> Iterator[str]:
    needed = importlib.metadata.requires("ttsnap") or ()
    lacks = {extra: unmet(needed, extra) for extra in EXTRAS}
    yield f"there: {', '.join(extra for extra, wrong in lacks.items() if not wrong) or 'none'}"
    for extra, wrong in lacks.items():
        if wrong:
            yield f"not there: {extra} (for {EXTRAS[extra]}): {install(extra)}"


def _measured(pipe: Any) -> Iterator[str]:
    """Run a short search, and tell what a minute buys."""
    call = defaults(EMBEDDED)
    steps = int(call.pop("num_inference_steps"))
    pipe.set_progress_bar_config(disable=True)
    for seeds in (1, SEEDS):  # a first call takes more
        found = pipe(
            "a red circle",
            search=make_algorithm("best-of-n", n=seeds),
            reward="brightness",
            seed=0,
            num_inference_steps=STEPS,
            **call,
        )
        taken = found.search[0].spent
    image = (
        steps * taken.seconds_by["denoise"] / taken.cost.nfe
        + taken.seconds_by["decode"] / taken.cost.decodes
    )
    yield (
        f"of the embedded model, {SEEDS} images at a time: a minute buys about"
        f" {_count(60 * steps / image)} evaluations (nfe): {_count(60 / image)} images of {steps}"
        " steps"
    )


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
