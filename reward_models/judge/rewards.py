"""Rewards of a judge behind an API: one image at a time, or a tournament of pairs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttsnap.core.protocols import Scores
from ttsnap.files.settings import check
from ttsnap.reward_models.http import encode_images
from ttsnap.reward_models.judge.client import Client
from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.judge.questions import (
    CRITERIA,
    EACH,
    PAIR,
    Either,
    EitherEach,
    Marks,
    Question,
    rubric,
)
from ttsnap.reward_models.preprocess import check_images
from ttsnap.reward_models.tournament import TournamentReward
from ttsnap.reward_models.vqa import QUESTION
from ttsnap.rewards.reward_model import ELSEWHERE, RewardModel

logger = logging.getLogger(__name__)


class Judge(RewardModel):
    """Scores by a vision-language model behind an OpenAI-compatible API (questions.py has the
    questions).

    kind: "yes" for the probability of Yes against No, in [0, 1]; "rubric" for the mean of marks
    from 0 to 10, one for each of `criteria` (name -> meaning). An image whose question fails gets
    nan and a warning in the log; where all fail, RuntimeError says why, and a search loses the
    scores of that batch. `usage` adds up tokens and money. ValueError where no model is named or a
    key is missing.
    """

    runs_on = ELSEWHERE

    def __init__(
        self,
        kind: str = "yes",
        options: JudgeOptions | None = None,
        criteria: Mapping[str, str] = CRITERIA,
    ) -> None:
        check("kind of judge", kind, Literal["yes", "rubric"])
        if not criteria:
            raise ValueError("a rubric needs at least one criterion")
        self.kind = kind
        self.criteria = dict(criteria)
        self.client = Client(options or JudgeOptions())
        self.name = f"judge:{kind} {self.client.options.model}"
        self.tokens = self.client.options.image_tokens
        self.usage = self.client.usage

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """images (N, 3, H, W) float in [0, 1], N prompts -> (N,) float64 on the CPU, nan where a
        question failed."""
        self.tokens_taken = ()
        check_images(images, prompts)
        pictures = encode_images(images)
        questions = [
            self._question(image, prompt) for image, prompt in zip(pictures, prompts, strict=True)
        ]
        return self._asked(questions, [1] * len(questions))

    @property
    def joins(self) -> bool:  # type: ignore[override]
        return self.kind == "yes"

    def score_each(self, images: Tensor, prompts: Sequence[Sequence[str]]) -> Scores:
        """One question about each image, whose tokens its prompts share."""
        if not self.joins or all(len(texts) == 1 for texts in prompts):
            return super().score_each(images, prompts)
        self.tokens_taken = ()
        pairs = zip(encode_images(images), prompts, strict=True)
        questions = [self._joint(image, texts) for image, texts in pairs]
        return self._asked(questions, list(map(len, prompts)))

    def _joint(self, image: str, prompts: Sequence[str]) -> Question:
        listed = "\n".join(f"{i}. {prompt}" for i, prompt in enumerate(prompts, 1))
        asked = EACH.format(listed=listed, number=len(prompts))
        return Question((image,), asked, EitherEach(len(prompts)))

    def _asked(self, questions: Sequence[Question], parts: Sequence[int]) -> Tensor:
        """Their scores, as many of each as it has parts, which share its tokens. RuntimeError where
        all fail; where some do, the log says so."""
        verdicts = self.client.ask(questions)
        scores = list[float]()
        taken = list[int]()
        for verdict, number in zip(verdicts, parts, strict=True):
            scores += number * [math.nan] if verdict.error is not None else verdict.scores
            each, rest = divmod(verdict.tokens, number)
            taken += [each + (i < rest) for i in range(number)]
        self.tokens_taken = taken
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        if errors and len(errors) == len(verdicts):
            raise RuntimeError(errors[0])
        if errors:
            logger.warning(
                "%s: %d of %d images got no score: %s",
                self.name,
                len(errors),
                len(verdicts),
                errors[0],
            )
        return torch.tensor(scores, dtype=torch.float64)

    def _question(self, image: str, prompt: str) -> Question:
        if self.kind == "yes":
            return Question((image,), QUESTION.replace("{}", prompt), Either())
        return Question((image,), rubric(prompt, self.criteria), Marks(tuple(self.criteria)))


class PairJudge(TournamentReward):
    """A TournamentReward whose judge is a model behind an API. Comparisons run one after the other.

    The judge's answer is the probability of A against B.
    """

    runs_on = ELSEWHERE

    def __init__(self, options: JudgeOptions | None = None) -> None:
        self.client = Client(options or JudgeOptions())
        rounds = self.client.options.rounds
        model = self.client.options.model
        super().__init__(self._prefer, rounds, f"judge:pairs {model}")
        # of each pair, two images
        self.tokens = 2 * math.ceil(rounds + 0.5) * self.client.options.image_tokens
        self.usage = self.client.usage
        self._taken: Counter[str] = Counter()

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> NDArray[np.float32]:
        """As TournamentReward; the images of a prompt share the tokens that their comparisons
        take."""
        self._taken.clear()
        try:
            return super().__call__(images, prompts, level)
        finally:
            share = {
                prompt: divmod(taken, prompts.count(prompt))
                for prompt, taken in self._taken.items()
            }
            whole = [share.get(prompt, (0, 0))[0] for prompt in prompts]
            for prompt, (_, rest) in share.items():
                whole[prompts.index(prompt)] += rest
            self.tokens_taken = whole

    def _prefer(self, a: Tensor, b: Tensor, prompt: str) -> float:
        pair = Question(
            tuple(encode_images(torch.stack([a, b]))), PAIR.format(prompt=prompt), Either("a", "b")
        )
        (verdict,) = self.client.ask([pair])
        self._taken[prompt] += verdict.tokens
        if verdict.error is not None:
            raise RuntimeError(verdict.error)
        return verdict.scores[0]


def from_spec(spec: str) -> RewardModel:
    """Read "judge", "judge:rubric", "judge:yes:model=NAME,concurrency=4". ValueError for what
    cannot be read."""
    _, _, rest = spec.partition(":")
    kind, _, text = rest.partition(":")
    check("kind of judge", kind or "yes", Literal["yes", "rubric", "pairs"])
    options = JudgeOptions.parse(text)
    return PairJudge(options) if kind == "pairs" else Judge(kind or "yes", options)
