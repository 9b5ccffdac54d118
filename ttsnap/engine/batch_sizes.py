"""How many rows the engine takes at once: given, measured, or halved when the device runs out of
memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ttsnap.core.cost import Cost, Rates
from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.core.prompt import Prompt
from ttsnap.engine.scoring import RowScorer
from ttsnap.profiling.memory import Gauge, fit_rows, fitting, gauge_of
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Call, ask
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser, Drafts

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class BatchSizes:
    """batch_size: most rows in a call of the denoiser; decode_batch_size: most images in a decode
    and a reward call.

    None where a size is to be found when it is first needed: by `find`, which gets both and returns
    both. ValueError for sizes below 1. stats: where it counts how often memory ran out.
    """

    def __init__(
        self,
        batch_size: int | None,
        decode_batch_size: int | None,
        find: Callable[[int | None, int | None], tuple[int, int]],
        stats: MutableMapping[str, int],
    ) -> None:
        if any(size is not None and size < 1 for size in (batch_size, decode_batch_size)):
            raise ValueError(
                f"batch sizes must be at least 1, got {batch_size} and {decode_batch_size}"
            )
        self._sizes = (batch_size, decode_batch_size)
        self._find = find
        self._stats = stats

    @property
    def batch_size(self) -> int:
        return self._found()[0]

    @property
    def decode_batch_size(self) -> int:
        return self._found()[1]

    def _found(self) -> tuple[int, int]:
        denoise, decode = self._sizes
        if denoise is None or decode is None:
            denoise, decode = self._sizes = self._find(denoise, decode)
        return denoise, decode

    def run(
        self, batch: Sequence[T], call: Callable[[Sequence[T]], R], *, decoding: bool = False
    ) -> tuple[R, int]:
        """call(batch), on the first half of it and with that size from now on as often as memory
        runs out.

        What the call returned, and how many of the first rows it took. decoding: a batch of images,
        not of rows for the denoiser. NotEnoughMemoryError where one row is too many.
        """

        def lacks(n: int, short: str) -> None:
            self._stats["out_of_memory"] += 1
            if n < 2:
                what = "decoding and scoring one image" if decoding else "denoising one image"
                raise NotEnoughMemoryError(f"{what} takes more memory than there is: {short}")
            self._halve(n // 2, decoding)

        return fitting(batch[: self._found()[int(decoding)]], call, lacks)

    def _halve(self, half: int, decoding: bool) -> None:
        denoise, decode = self._found()
        self._sizes = (denoise, half) if decoding else (half, decode)
        logger.warning(
            "out of memory: %s is %d from now on",
            "decode_batch_size" if decoding else "batch_size",
            half,
        )


def buckets(batch_size: int) -> tuple[int, ...]:
    """The powers of two up to `batch_size`, and `batch_size` itself, ascending. ValueError below
    1."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    powers = {1 << k for k in range(batch_size.bit_length())}
    return tuple(sorted(powers | {batch_size}))


def bucket_of(n: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds n rows. ValueError where none does."""
    fits = [size for size in sizes if size >= n]
    if n < 1 or not fits:
        raise ValueError(f"no bucket of {tuple(sizes)} holds {n} rows")
    return min(fits)


DEFAULT_BATCH = 16
"""The batch size where memory cannot be measured."""
MOST = 64
"""The most rows of a batch: more gain no speed."""


def sizes_for(
    denoiser: Denoiser,
    scorer: RowScorer,
    prompts: Sequence[Prompt],
    denoise: int | None,
    decode: int | None,
    *,
    padded: bool = False,
) -> tuple[int, int, Cost]:
    """The two batch sizes that fit into memory, those given staying, and what finding them took.

    They are kept with the pipeline, where the denoiser offers to. prompts: those of the search, if
    one has started; to be encoded again afterwards, where something was spent. padded: as in
    EngineOptions.
    """
    gauge = gauge_of(denoiser.device)
    if gauge is None:
        denoise = denoise or DEFAULT_BATCH
        return denoise, decode or denoise, Cost()
    memo = denoiser.memo()
    key = (
        "batches",
        scorer.names,
        scorer.shown,
        scorer.likeness and scorer.likeness.name,
        denoise,
        decode,
        padded,
    )
    spent = Cost()
    if key not in memo:
        denoiser.encode(prompts[:1] or [Prompt("")])
        *memo[key], spent = fit_batches(denoiser, scorer, gauge, denoise, decode, padded=padded)
    denoise, decode = memo[key]
    return denoise, decode, spent


@torch.no_grad()
def fit_batches(
    denoiser: Denoiser,
    scorer: RowScorer,
    gauge: Gauge,
    denoise: int | None,
    decode: int | None,
    *,
    padded: bool = False,
) -> tuple[int, int, Cost]:
    """The two batch sizes that fit into memory, those given staying, for prompts that are encoded;
    and what it took.

    padded: a network is compiled for each size that it is called with, so that only powers of two
        are tried and found.
    """
    spent = Cost()
    tokens = 0

    def judge(n: int) -> None:
        nonlocal tokens
        images = denoiser.decode(_noise(denoiser, n))
        sources = scorer.sources(torch.zeros(n, dtype=torch.long))
        for reward in scorer.rewards:
            ask(
                scorer.shown.by(reward, sources),
                images,
                [""] * n,
                torch.zeros(n, device=images.device),
                len(reward.names),
            )
            tokens += sum(scorer.shown.tokens(reward))
        scorer.features(list(images))

    if denoise is None:
        denoise, rows = fit_rows(lambda n: _predict(denoiser, n), gauge, MOST, 4 if padded else 3)
        if padded:
            denoise = 1 << (denoise.bit_length() - 1)
        spent += Cost(rows)
    if decode is None:
        decode, rows = fit_rows(judge, gauge, denoise)
        spent += Cost(
            0, rows, rows * scorer.calls, tokens=tokens, features=rows * scorer.features_taken
        )
    return denoise, decode, spent


@torch.no_grad()
def seconds_of(denoiser: Denoiser, scorer: RowScorer, sizes: BatchSizes) -> tuple[Rates, Cost]:
    """Seconds per unit, for budgets in seconds, and what measuring them took."""
    denoiser.encode([Prompt("")])
    one = _again(lambda: _predict(denoiser, 1))
    many, n = sizes.run(
        [0] * sizes.batch_size, lambda rows: _again(lambda: _predict(denoiser, len(rows)))
    )
    nfe = max(many - one, 0.2 * many) / max(1, n - 1)
    latent = _noise(denoiser, 1)
    image = denoiser.decode(latent)
    decode = _again(lambda: denoiser.decode(latent).cpu())
    previews = scorer.estimates == "preview"
    preview = _again(lambda: denoiser.preview(latent).cpu()) if previews else 0.0
    drafts = denoiser.drafts
    draft = 0.0 if drafts is None else _again(lambda: _draft(denoiser, drafts))
    finished = torch.zeros(1, device=image.device)
    level = torch.ones(1, device=image.device)
    sources = scorer.sources(torch.zeros(1, dtype=torch.long))
    scoring = 0.0
    bases = 0.0
    calls = 2 * scorer.calls
    tokens = 0

    def asked(reward: RewardModel, call: Call, x: Tensor, prompt: str, level: Tensor) -> None:
        nonlocal tokens
        ask(call, x, [prompt], level, len(reward.names))
        tokens += sum(scorer.shown.tokens(reward))

    for reward in scorer.rewards:
        call = scorer.shown.by(reward, sources)
        latents = reward.estimates == "latents"
        look, x, prompt = (
            (reward.score_estimates, latent, reward.example) if latents else (call, image, "")
        )
        scoring += (taken := _again(partial(asked, reward, look, x, prompt, level)))
        if reward.base_flops:
            calls += 2 * scorer.shown.calls(reward)
            bases += max(0.0, _again(partial(asked, reward, call, image, "", finished)) - taken)
    describing = _again(lambda: scorer.features([*image])) * scorer.features_taken
    # In a full batch, a draft is as much cheaper than alone as an evaluation is.
    rates = Rates(
        nfe,
        decode,
        scoring / scorer.calls,
        preview,
        draft_calls=draft * nfe / max(one, nfe),
        features=describing,
        base_calls=bases / max(1, scorer.bases),
        call=max(0.0, one - nfe),
    )
    more = {
        "draft_calls": 2 * (drafts is not None),
        "features": 2 * scorer.features_taken,
        "tokens": tokens,
    }
    return rates, Cost(2 * n + 2, 3, calls, 2 * previews, base_calls=2 * scorer.bases, **more)


def _again(call: Callable[[], object]) -> float:
    """Seconds of the second call: the first may load weights or compile."""
    call()
    return _timed(call)


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _noise(denoiser: Denoiser, n: int) -> Tensor:
    return denoiser.init_latents([rng.seeded(i) for i in range(n)])


def _draft(denoiser: Denoiser, drafts: Drafts) -> Tensor:
    zero = torch.zeros(1, dtype=torch.long)
    return drafts.guess(_noise(denoiser, 1), zero, zero, 1).cpu()


def _predict(denoiser: Denoiser, n: int) -> Tensor:
    zeros = torch.zeros(n, dtype=torch.long)
    return denoiser.predict(_noise(denoiser, n), zeros, zeros).x0.cpu()
