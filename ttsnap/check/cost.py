"""Cost: seconds of each part of a search by its batch, what it takes of memory, and what of it is
not the model's."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.check.ladder import Figure, Known, Rung, Setup, in_short
from ttsnap.check.titles import title
from ttsnap.core.cost import Rates
from ttsnap.core.memory import lacks_memory
from ttsnap.core.selection import Selection
from ttsnap.loop.search import search
from ttsnap.pipelines.memory.acceleration import SDPA, use_attention
from ttsnap.results.media import save_png
from ttsnap.results.outputs import Recorder
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability

KERNELS = {
    "xformers": "xformers",
    "flash_attn": "flash",
    "flash_attn_interface": "_flash_3",
    "sageattention": "sage",
}
"""Modules that bring attention kernels, and what --attention calls those."""
GAIN = 1.03
"""A larger batch is better where an evaluation takes this much less time in it."""
SLOW = 60.0
"""Seconds of a batch above which no larger one is tried: a user waits for one while the search is
stopped."""


def cost(setup: Setup) -> Rung:
    """Throw-away calls of each part, then a best-of-N that is metered."""
    rung = Rung("cost")
    engine = setup.engine()
    denoiser: Any = engine.denoiser
    denoiser.encode(setup.prompts[:1])
    with torch.no_grad():
        best = _batches(setup, rung, denoiser, engine.batch_size)
        latent = denoiser.init_latents([rng.seeded(0)])
        rung.figures["decode"] = Figure.of_seconds(lambda: denoiser.decode(latent).cpu())
        preview = None
        if Capability.PREVIEW in denoiser.can:
            preview = Figure.of_seconds(lambda: denoiser.preview(latent).cpu())
        rung.note("preview", preview, "there is no preview VAE; name one by --preview-vae")
        _kernels(setup, rung, denoiser, best)
    seconds = _metered(setup, rung, best, preview)
    rung.known = Known(batch_size=best, seconds=seconds)
    rung.holds = rung.done = "search" not in rung.missing
    return rung


def _batches(setup: Setup, rung: Rung, denoiser: Any, most: int) -> int:
    """Time an evaluation in batches of rising size; the best of them."""
    sizes = [1 << k for k in range(most.bit_length()) if 1 << k < most] + [most]
    best = 1
    least = float("inf")
    for size in sizes:
        name = f"evaluation:{size}"
        setup.say(f"timing {title(name)}")
        try:
            each = Figure.of_seconds(lambda size=size: evaluate(denoiser, size), size)  # type: ignore[misc]
        except Exception as error:
            if not lacks_memory(error):
                raise
            rung.missing[name] = "out of memory"
            break
        rung.figures[name] = each
        if each.value * GAIN < least:
            best = size
            least = each.value
        if size < most and (each.value * size > SLOW or 8 * each.value * size > setup.left):
            rung.missing[f"larger-batches:{size}"] = (
                "they would take the time of the other rungs; give more --minutes"
            )
            break
    rung.said.append(f"the best batch is {best}")
    return best


def evaluate(denoiser: Any, size: int) -> torch.Tensor:
    """The estimates (N, ...) of so many rows of noise, on the CPU."""
    zeros = torch.zeros(size, dtype=torch.long)
    guess: torch.Tensor = denoiser.predict(
        denoiser.init_latents([rng.seeded(i) for i in range(size)]), zeros, zeros
    ).x0
    return guess.cpu()


def there(module: str) -> bool:
    """Whether a module is installed."""
    return importlib.util.find_spec(module) is not None


def _kernels(setup: Setup, rung: Rung, denoiser: Any, size: int) -> None:
    """Time attention by each kernel that is installed, and go back to the one that was asked
    for."""
    for module, name in KERNELS.items():
        each = None
        why = "it is not installed"
        if there(module):
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    if use_attention(setup.pipe, name) == name:
                        each = Figure.of_seconds(lambda: evaluate(denoiser, size), size)
                why = str(told[-1].message) if told else why
            except (ValueError, RuntimeError) as error:
                why = in_short(error)
            use_attention(
                setup.pipe, setup.spec.model.attention if setup.spec.model is not None else SDPA
            )
        rung.note(f"attention:{name}", each, why)


def _metered(setup: Setup, rung: Rung, size: int, preview: Figure | None) -> Rates:
    """A best-of-N of as many images as a batch and the time allow: seconds of each unit, the shares
    of its seconds, and its memory."""
    engine = setup.engine(size)
    evaluation, decode = (rung.figures[name].value for name in (f"evaluation:{size}", "decode"))
    image = engine.grid.nfe * evaluation + decode
    n = min(max(size, 4), int(setup.left / image))
    if n < 1:
        why = f"an image takes {image:.3g} s, and the time was over; give more --minutes"
        rung.missing["search"] = why
        return Rates(nfe=evaluation, decodes=decode)
    setup.say(f"timing a search of {n} images")
    recorder = Recorder()
    (result,) = search(
        setup.prompts[:1],
        BestOfN(n),
        engine,
        selection=Selection(utility=setup.utility),
        on_event=recorder,
    )
    spent = result.spent
    taken = spent.seconds
    by = spent.seconds_by
    of = spent.cost
    rates = Rates(
        nfe=by["denoise"] / of.nfe,
        decodes=by["decode"] / max(1, of.decodes),
        reward_calls=by["reward"] / max(1, of.reward_calls),
        previews=preview.value if preview else 0.0,
    )
    each = {"evaluation": rates.nfe, "decode": rates.decodes, "reward": rates.reward_calls}
    loop = taken - sum(by.values())
    shares = {"decodes": by["decode"], "rewards": by["reward"], "loop": loop}
    rung.figures[f"search-of:{n}"] = Figure(taken, unit="s")
    for part, seconds in each.items():
        rung.figures[f"{part}-in-search"] = Figure(seconds, unit="s")
    for part, seconds in shares.items():
        rung.figures[f"share-of-{part}"] = Figure(100 * seconds / taken, unit="%")
    peak = spent.usage.get("peak_memory_bytes")
    memory = None if peak is None else Figure(peak / 2**30, unit="GiB")
    rung.note("peak-memory", memory, "this system does not tell")
    if memory is not None:
        rung.said.append(f"memory is the {spent.usage.get('memory_kind')}")
    save_png(setup.out / "sheet.png", recorder.sheet(result))
    if rung.figures["share-of-decodes"].value > 15 and preview is None:
        rung.said.append(
            "decodes take much of a search: a preview VAE (--preview-vae) would make checks cheaper"
        )
    return rates
