"""Rewards on rows of latents: decode what they read in pixels, ask them, and say what went
wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.grid import Grid
from ttsnap.core.outcome import Decoded, Here, Outcome, thinned
from ttsnap.core.price import Price
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row
from ttsnap.options.option import Spec
from ttsnap.profiling.meter import Stopwatch
from ttsnap.reward_models.likeness import make_likeness
from ttsnap.rewards.reward_model import RewardModel, said, turn_of
from ttsnap.rewards.scoring import (
    NOT_FINITE,
    Call,
    RewardHealthCheck,
    Shown,
    answered,
    as_float64,
    explained,
    landed,
)
from ttsnap.sampling.denoiser import Capability, Denoiser

logger = logging.getLogger(__name__)


class ScoredRows(NamedTuple):
    """What was found of n rows."""

    scores: FloatArray
    """(n, R), nan where one failed."""
    errors: list[str | None]
    """Why scores failed, by row."""
    images: Sequence[Decoded | None]
    """None where nobody needed one."""
    latents: Tensor
    """(n, ...) that were scored."""
    cost: Cost
    """What scoring took, after the decodes."""
    tokens_left: IntArray
    """(n,) tokens that each row was charged for and did not take."""
    features: FloatArray | None = None
    """(n, D), as in Outcome."""

    def added_to(self, outcome: Outcome, at: Sequence[int], *, latents: bool) -> Outcome:
        """An outcome whose rows are rows `at` of these, with what was found. latents: whether
        listeners get them."""
        return replace(
            outcome,
            scores=self.scores[list(at)],
            images=[self.images[i] for i in at],
            features=None if self.features is None else self.features[list(at)],
            errors=[self.errors[i] for i in at],
            kept=[{"latent": self.latents[i]} for i in at] if latents else (),
            unspent=Cost(tokens=int(self.tokens_left[list(at)].sum())),
        )


class SmallCopies:
    """Small copies of the estimates of a batch. They leave the device together, once one is asked
    for."""

    def __init__(self, images: Sequence[Tensor | None], rows: Sequence[int]) -> None:
        self._images = images
        self._rows = rows
        self._copies = dict[int, Tensor]()

    def __getitem__(self, row: int) -> Tensor:
        for rows in _alike(self._images, self._rows):
            small = _pictures(
                [None if each is None else thinned(each) for each in self._images], rows
            )
            self._copies.update(zip(rows, small.cpu(), strict=True))
        self._images = ()
        self._rows = ()
        return self._copies[row]


@dataclass(frozen=True)
class OnDevice(Here):
    """An estimate, on the device where it was decoded."""

    batch: SmallCopies = field(repr=False)
    row: int

    def small(self) -> Tensor:
        return self.batch[self.row]


class RewardBatch(NamedTuple):
    """What rewards score: n rows."""

    batch: Sequence[Row]
    latents: Tensor
    """(n, ...)."""
    images: Sequence[Tensor | None]
    """Images or videos, where someone needs them."""
    prompts: Sequence[str]
    """In words."""
    levels: Tensor
    """(n,) noise levels."""
    sources: Tensor | None
    """(n, 3, h, w) that the rows edit, where a reward is to see them."""


Columns: TypeAlias = tuple[Tensor | FloatArray, Mapping[str, Exception], IntArray]
"""What a reward says of n rows: scores (n, R) by its names, nan where one failed, why, by name, and
tokens (n,) that it took."""
Later: TypeAlias = Callable[[Callable[[], Columns]], "Future[Columns]"]
"""Has a reward asked in the background."""


class BegunScores(NamedTuple):
    """n rows that were decoded, with what rewards say of them, or will."""

    rows: Sequence[Row]
    columns: Mapping[str, Columns | Future[Columns]]
    broken: BoolArray
    """(n,) which hold nan or inf already."""
    pictures: Sequence[Decoded | None]
    latents: Tensor
    features: FloatArray | None
    """These three as in ScoredRows."""
    cost: Cost
    """Of decoding."""

    @property
    def waits(self) -> list[Future[Columns]]:
        """What is asked in the background."""
        return [column for column in self.columns.values() if isinstance(column, Future)]


class RowScorer:
    """Scores rows with every reward.

    estimates: what becomes of unfinished ones, as in Price: "decode", "preview" or "nothing".
    shown: what rewards see of what is made, by the denoiser and the option `frames`. features: by
    what images are compared. display: as the option. ValueError where there is no preview VAE, and
    for rewards that need what there is not.

    A reward that fails now and then costs those images their scores. One that fails from the start,
    on all images of its first batch, ends the search by RewardError (rewards/scoring.py).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rewards: Sequence[RewardModel],
        grid: Grid,
        *,
        preview: bool = False,
        frames: int = 1,
        features: Spec = None,
    ) -> None:
        together: list[RewardModel] = []
        for reward in rewards:
            both = together[-1].joined(reward) if together else None
            together[len(together) - (both is not None) :] = [both or reward]
        rewards = together
        self.names = tuple(name for r in rewards for name in r.names)
        if preview and Capability.PREVIEW not in denoiser.can:
            raise ValueError(f"{type(denoiser).__name__} has no preview VAE; set pipe.preview_vae")
        self.denoiser = denoiser
        self.rewards = tuple(rewards)
        self.grid = grid
        self.likeness = make_likeness(features, self.rewards, denoiser.device)
        self.shown = shown_of(denoiser, frames)
        self.shown.check(rewards)
        self._first = RewardHealthCheck(rewards)
        self._turns: dict[str, AbstractContextManager[object]] = {
            r.name: turn_of(r) if r.leaves_free(denoiser.device, early=False) else nullcontext()
            for r in rewards
        }
        """Of rewards that are asked in the background, and may be asked here meanwhile."""
        # Whoever wants the images kept pays for their decodes, too.
        seen = any(r.estimates == "pixels" for r in rewards)
        self.tokens = sum(r.tokens * self.shown.seen(r) for r in rewards)
        self.calls = sum(map(self.shown.calls, rewards))
        self.estimates: Literal["decode", "preview", "nothing"]
        self.estimates = "nothing" if not seen else "preview" if preview else "decode"

    def price(self, denoiser: Denoiser) -> Price:
        """What plain steps of this denoiser take, with drafts and scores, in FLOPs."""
        costs = denoiser.costs()
        drafts = denoiser.drafts
        per_draft = 0 if drafts is None else drafts.passes
        # Of a reward call on average over those of a score.
        reward = sum(r.flops * self.shown.seen(r) for r in self.rewards) / self.calls
        preview = costs.preview if self.estimates == "preview" else 0.0
        features = 0.0 if self.likeness is None else self.likeness.flops * (self.shown.frames or 1)
        return Price(
            Rates(
                costs.nfe,
                costs.decode,
                reward,
                preview,
                draft_calls=costs.draft * per_draft,
                features=features,
                base_calls=sum(r.base_flops * self.shown.seen(r) for r in self.rewards)
                / max(1, self.bases),
                **({} if denoiser.starter is None else denoiser.starter.flops()),
            ),
            passes_per_nfe=denoiser.passes_per_nfe,
            estimates=self.estimates,
            passes_per_draft=per_draft,
            tokens=self.tokens,
            more_calls=self.calls - len(self.names),
            features=self.features_taken,
            bases=self.bases,
            start=denoiser.start,
        )

    @cached_property
    def bases(self) -> int:
        """Rewards that leave a finished image to a dearer base."""
        return sum(reward.base_flops > 0 for reward in self.rewards)

    @property
    def features_taken(self) -> int:
        """How often features are taken of an image: once or never."""
        return int(self.likeness is not None)

    def features(self, images: Sequence[Tensor | None]) -> FloatArray | None:
        """(n, D) of n images or videos, nan where there is none; None where they are not to be
        compared."""
        seen = [i for i, image in enumerate(images) if image is not None]
        if self.likeness is None or not seen:
            return None
        found = np.empty((len(images), 0))
        for rows in _alike(images, seen):
            part = self.shown.features(self.likeness, _pictures(images, rows))
            found = found if found.shape[1] else np.full((len(images), part.shape[1]), np.nan)
            found[rows] = part
        return found

    def sources(self, cond: Tensor) -> Tensor | None:
        """What these prompts (N,) edit, where a reward is to see it."""
        return (
            self.denoiser.sources(cond) if any("source" in r.needs for r in self.rewards) else None
        )

    def begin(
        self, batch: Sequence[Row], prompts: EncodedPrompts, watch: Stopwatch, later: Later | None
    ) -> BegunScores:
        """Decode these rows and ask the rewards, those that leave the device free by `later`, if
        there is one.

        prompts: those of all jobs.
        """
        latents = torch.stack([row.look.scored(row.node).x0 for row in batch])
        levels = [row.look.level(row.stop, self.grid) for row in batch]
        last = [i for i, row in enumerate(batch) if row.last]
        early = [i for i, row in enumerate(batch) if not row.last]
        with watch("decode", latents.device):
            images, cost = self._images(
                latents, prompts.rows([row.node for row in batch]), last, early
            )
        with watch("reward", latents.device):
            texts = prompts.texts(batch)
            sources = self.sources(prompts.rows([row.node for row in batch]))
            asked = RewardBatch(
                batch, latents, images, texts, torch.tensor(levels, device=latents.device), sources
            )
            away = [
                r for r in self.rewards if later is not None and self._is_away(r, early=bool(early))
            ]
            here = {r.name: self._columns(r, asked) for r in self.rewards if r not in away}
            features = self.features(images)
            broken, *found = landed(
                [_broken(latents, images), *(scores for scores, _, _ in here.values())]
            )
        columns: dict[str, Columns | Future[Columns]] = {}
        for (name, (_, errors, tokens)), scores in zip(here.items(), found, strict=True):
            columns[name] = scores, errors, tokens
        if later is not None:
            columns |= {reward.name: later(partial(self._alone, reward, asked)) for reward in away}
        shown = list(images)
        # Estimates stay on the device for whoever listens; finished images leave it, in one
        # transfer.
        if last:
            for i, image in zip(last, _pictures(images, last).cpu(), strict=True):
                shown[i] = image
        copies = SmallCopies(shown, early)

        def picture(image: Tensor | None, row: int) -> Decoded | None:
            if image is None:
                return None
            if batch[row].last or image.device.type == "cpu":
                return Here(image, levels[row], batches=batch[row].node.batches)
            return OnDevice(image, levels[row], copies, row)

        pictures = [picture(image, row) for row, image in enumerate(shown)]
        return BegunScores(batch, columns, broken > 0, pictures, latents, features, cost)

    def end(self, begun: BegunScores) -> ScoredRows:
        """Wait for the scores. A lack of memory of a reward that was asked later is raised."""
        n = len(begun.rows)
        finished = np.array([row.last for row in begun.rows])
        scores = np.full((n, len(self.names)), np.nan)
        taken = np.zeros(n, int)
        causes: dict[str, str | None] = {}
        for reward in self.rewards:
            answer = begun.columns[reward.name]
            found, errors, tokens = answer.result() if isinstance(answer, Future) else answer
            for name, of_name in zip(reward.names, np.asarray(found).T, strict=True):
                column = np.where(begun.broken, np.nan, of_name)
                error = errors.get(name)
                self._first.check(name, column, finished, begun.broken, error)
                scores[:, len(causes)] = column
                causes[name] = said(name, error) if error else None
            taken += tokens
        reasons = [
            NOT_FINITE if bad else explained(row, causes)
            for row, bad in zip(scores, begun.broken, strict=True)
        ]
        described = self.features_taken * sum(picture is not None for picture in begun.pictures)
        bases = int(finished.sum()) * self.bases
        asked = Cost(
            0, 0, n * self.calls, tokens=int(taken.sum()), features=described, base_calls=bases
        )
        left = self.tokens - taken
        return ScoredRows(
            scores, reasons, begun.pictures, begun.latents, asked, left, begun.features
        )

    def _is_away(self, reward: RewardModel, *, early: bool) -> bool:
        """Whether a reward leaves the denoiser's device free, and is not asked for features
        here."""
        free = reward.leaves_free(self.denoiser.device, early=early)
        return free and (self.likeness is None or reward.embed_images is None)

    def _images(
        self, latents: Tensor, cond: Tensor, last: list[int], early: list[int]
    ) -> tuple[list[Tensor | None], Cost]:
        """The images of these rows of prompts (n,), None where nobody needs one."""
        images: list[Tensor | None] = [None] * len(latents)
        decoded = sorted(last + early) if self.estimates == "decode" else last
        previewed = early if self.estimates == "preview" else []
        made = self.denoiser.decode_rows(latents[decoded], cond[decoded]) if decoded else ()
        seen = self.denoiser.preview(latents[previewed]) if previewed else ()
        for i, image in zip([*decoded, *previewed], [*made, *seen], strict=True):
            images[i] = image
        return images, Cost(0, len(decoded), 0, len(previewed))

    def _columns(self, reward: RewardModel, of: RewardBatch) -> Columns:
        """A reward's answer: estimates in its own space, the rest decoded. It may still be on the
        device."""
        n = len(of.batch)
        ahead = [
            i for i, row in enumerate(of.batch) if reward.estimates != "pixels" and not row.last
        ]
        seen = [i for i in range(n) if i not in set(ahead)]
        width = len(reward.names)
        tokens = np.zeros(n, int)
        errors = dict[str, Exception]()
        found: list[tuple[list[int], Tensor | FloatArray]] = []

        def score(rows: list[int], call: Call, x: Tensor) -> None:
            texts = [of.prompts[i] for i in rows]
            scores, error = answered(call, x, texts, of.levels[rows], width)
            found.append((rows, scores.reshape(len(rows), width)))
            failures = dict.fromkeys(reward.names, error) if error else reward.failures
            errors.update({**failures, **errors})

        with self._turns[reward.name]:
            for rows in _alike(of.images, seen):
                sources = None if of.sources is None else of.sources[rows]
                score(rows, self.shown.by(reward, sources), _pictures(of.images, rows))
                for i, taken in zip(rows, self.shown.tokens(reward), strict=False):
                    tokens[i] = taken
            if ahead:
                score(ahead, reward.score_estimates, of.latents[ahead])
        if len(found) == 1 and len(found[0][0]) == n:
            return found[0][1], errors, tokens
        whole = np.full((n, width), np.nan)
        for rows, scores in found:
            whole[rows] = as_float64(scores)
        return whole, errors, tokens

    @torch.no_grad()  # which is a thread's own
    def _alone(self, reward: RewardModel, of: RewardBatch) -> Columns:
        """The same in the background."""
        scores, errors, tokens = self._columns(reward, of)
        return landed([scores])[0], errors, tokens


def shown_of(denoiser: Denoiser, frames: int) -> Shown:
    """What rewards are shown of what this denoiser makes; of a video, so many frames or all that
    there are."""
    return Shown(
        None if denoiser.frames is None else min(frames, denoiser.frames),
        Capability.EDIT in denoiser.can,
    )


def _pictures(images: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor:
    """(n, ...) images, or videos, of these n rows, which all have one."""
    return torch.stack([image for i in rows if (image := images[i]) is not None])


def _alike(images: Sequence[Tensor | None], rows: Sequence[int]) -> list[list[int]]:
    """These rows in groups whose images have one shape: previews of videos may have fewer
    frames."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in rows:
        if (image := images[i]) is not None:
            groups.setdefault(tuple(image.shape), []).append(i)
    return list(groups.values())


def _broken(latents: Tensor, images: Sequence[Tensor | None]) -> Tensor:
    """(N,) float32, 1 where a row's latent or its image holds nan or inf."""
    broken = ~torch.isfinite(latents).flatten(1).all(1)
    for seen in _alike(images, range(len(images))):
        broken[seen] |= ~torch.isfinite(_pictures(images, seen)).flatten(1).all(1)
    return broken.float()
