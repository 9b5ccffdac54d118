"""Cost: seconds of each part of a search by its batch, what it takes of memory, and what of it is not the model's."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.check.ladder import Figure, Rung, Setup
from ttsnap.core.cost import Rates
from ttsnap.loop.search import search
from ttsnap.pipelines.memory.acceleration import SDPA, use_attention
from ttsnap.results.outputs import Recorder
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability

KERNELS = {"xformers": "xformers", "flash_attn": "flash", "flash_attn_interface": "_flash_3", "sageattention": "sage"}
"""Modules that bring attention kernels, and what --attention calls those."""
GAIN = 1.03
"""A larger batch is better where an evaluation takes this much less time in it."""
SLOW = 60.0
"""Seconds of a batch above which no larger one is tried: a user waits for one while the search is stopped."""


def cost(setup: Setup) -> Rung:
    """Throw-away calls of each part, then a best-of-N that is metered."""
    rung, engine = Rung("cost"), setup.engine()
    denoiser: Any = engine.denoiser
    denoiser.encode(setup.prompts[:1])
    with torch.no_grad():
        best = _batches(setup, rung, denoiser, engine.batch_size)
        latent = denoiser.init_latents([rng.seeded(0)])
        rung.figures["a decode alone"] = Figure.of_seconds(lambda: denoiser.decode(latent).cpu())
        preview = None
        if Capability.PREVIEW in denoiser.can:
            preview = Figure.of_seconds(lambda: denoiser.preview(latent).cpu())
        rung.note("a preview decode alone", preview, "there is no preview VAE; name one by --preview-vae")
        _kernels(setup, rung, denoiser, best)
    _metered(setup, rung, best, preview)
    rung.more["batch_size"] = best
    rung.holds = rung.done = "a search" not in rung.missing
    return rung


def _batches(setup: Setup, rung: Rung, denoiser: Any, most: int) -> int:
    """Time an evaluation in batches of rising size; the best of them."""
    sizes = [1 << k for k in range(most.bit_length()) if 1 << k < most] + [most]
    best, least = 1, float("inf")
    for size in sizes:
        title = f"an evaluation in a batch of {size}"
        setup.say(f"timing {title}")
        try:
            each = Figure.of_seconds(lambda size=size: _evaluate(denoiser, size), size)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            rung.missing[title] = "out of memory"
            break
        rung.figures[title] = each
        if each.value * GAIN < least:
            best, least = size, each.value
        if size < most and (each.value * size > SLOW or 8 * each.value * size > setup.left):
            rung.missing[f"batches above {size}"] = "they would take the time of the other rungs; give more --minutes"
            break
    rung.said.append(f"the best batch is {best}")
    return best


def _evaluate(denoiser: Any, size: int) -> torch.Tensor:
    zeros = torch.zeros(size, dtype=torch.long)
    guess: torch.Tensor = denoiser.predict(denoiser.init_latents([rng.seeded(i) for i in range(size)]), zeros, zeros).x0
    return guess.cpu()


def _kernels(setup: Setup, rung: Rung, denoiser: Any, size: int) -> None:
    """Time attention by each kernel that is installed, and go back to the one that was asked for."""
    asked = SDPA if setup.spec.model is None else setup.spec.model.attention
    for module, name in KERNELS.items():
        each, why = None, "it is not installed"
        if importlib.util.find_spec(module) is not None:
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    if use_attention(setup.pipe, name) == name:
                        each = Figure.of_seconds(lambda: _evaluate(denoiser, size), size)
                why = str(told[-1].message) if told else why
            except (RuntimeError, ValueError) as error:
                why = " ".join(str(error).split())[:200]
            use_attention(setup.pipe, asked)
        rung.note(f"an evaluation with {name} attention", each, why)


def _metered(setup: Setup, rung: Rung, size: int, preview: Figure | None) -> None:
    """A best-of-N of as many images as a batch and the time allow: the shares of its seconds, and its memory."""
    engine = setup.engine(size)
    evaluation = rung.figures[f"an evaluation in a batch of {size}"].value
    image = engine.grid.nfe * evaluation + rung.figures["a decode alone"].value
    n = min(max(size, 4), int(setup.left / image))
    if n < 1:
        rung.missing["a search"] = f"an image takes {image:.3g} s, and the time was over; give more --minutes"
        return
    setup.say(f"timing a search of {n} images")
    recorder = Recorder()
    (result,) = search(setup.prompts[:1], BestOfN(n), engine, utility=setup.utility, on_event=recorder)
    spent = result.spent
    taken, by = spent.seconds, spent.seconds_by
    nfe, decodes, calls = spent.cost.nfe, max(1, spent.cost.decodes), max(1, spent.cost.reward_calls)
    rung.figures |= {
        f"a search of {n} images": Figure(taken, unit="s"),
        "an evaluation in it": Figure(by["denoise"] / nfe, unit="s"),
        "a decode in it": Figure(by["decode"] / decodes, unit="s"),
        "a reward call in it": Figure(by["reward"] / calls, unit="s"),
        "share of its decodes": Figure(100 * by["decode"] / taken, unit="%"),
        "share of its rewards": Figure(100 * by["reward"] / taken, unit="%"),
        "share that is neither the model's nor a reward's": Figure(100 * (1 - sum(by.values()) / taken), unit="%"),
    }
    peak = spent.usage.get("peak_memory_bytes")
    memory = None if peak is None else Figure(peak / 2**30, unit="GiB")
    rung.note("peak memory", memory, "this system does not tell")
    if memory is not None:
        rung.said.append(f"memory is the {spent.usage.get('memory_kind')}")
    recorder.sheet(result).save(setup.out / "sheet.png")
    rates = Rates(nfe=by["denoise"] / nfe, decodes=by["decode"] / decodes, reward_calls=by["reward"] / calls,
                  previews=0.0 if preview is None else preview.value)  # fmt: skip
    rung.more["seconds"] = rates.named()
    if rung.figures["share of its decodes"].value > 15 and preview is None:
        rung.said.append("decodes take much of a search: a preview VAE (--preview-vae) would make checks cheaper")
