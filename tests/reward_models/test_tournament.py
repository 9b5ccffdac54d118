"""Bradley-Terry against closed forms, tournaments against judges whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from ttsnap.reward_models.tournament import TournamentReward, bradley_terry, tournament


def test_two_items_have_the_log_odds() -> None:
    strengths = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=1e3)
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3), abs=1e-4)
    assert bradley_terry(np.zeros((3, 3))).tolist() == [0, 0, 0]
    ties = bradley_terry(np.full((4, 4), 2.5) - 2.5 * np.eye(4))
    assert ties == pytest.approx(np.zeros(4), abs=1e-6)
    assert np.isfinite(bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()


def test_strengths_are_recovered_from_many_games() -> None:
    true = np.array([-1.0, -0.2, 0.1, 1.1])
    p = 1 / (1 + np.exp(true[None] - true[:, None]))
    found = bradley_terry(1e5 * p * (1 - np.eye(4)), prior=100.0)
    assert found == pytest.approx(true, abs=1e-3)


def test_a_sure_judge_orders_everything_and_the_budget_holds() -> None:
    asked: list[tuple[int, int]] = []

    def judge(i: int, j: int) -> float:
        asked.append((i, j))
        return float(i > j)

    n = 12
    strengths = tournament(n, judge, 5 * n)
    assert len(asked) == 5 * n
    assert {i for pair in asked[:n] for i in pair} == set(range(n))
    assert kendalltau(strengths, range(n))[0] > 0.9
    assert np.argmax(strengths) == n - 1
    asked.clear()
    assert tournament(n, judge, 3) is not None
    assert len(asked) == 3


def test_ties_and_noise() -> None:
    assert tournament(5, lambda i, j: 0.5, 30) == pytest.approx(np.zeros(5), abs=1e-6)
    rng, taus = np.random.default_rng(0), []
    for seed in range(5):
        true = rng.normal(0, 2, 10)

        def judge(i: int, j: int, true: Any = true) -> float:
            return float(rng.random() < 1 / (1 + np.exp(true[j] - true[i])))

        taus.append(kendalltau(tournament(10, judge, 80, seed=seed), true)[0])
    assert np.mean(taus) > 0.6


def test_a_judge_that_favours_the_first_image_is_balanced() -> None:
    strengths = tournament(6, lambda i, j: 1.0, 60)
    assert np.abs(strengths).max() < 0.5  # unbalanced, it would order them by place


def test_as_a_reward_by_prompt() -> None:
    def brighter(a: Any, b: Any, prompt: str) -> float:
        assert prompt in ("x", "y")
        return float(a.mean() > b.mean()) if a.mean() != b.mean() else 0.5

    images = torch.tensor([0.1, 0.9, 0.5, 0.3]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    reward = TournamentReward(brighter)
    scores = reward(images, ["x", "x", "x", "y"])
    assert reward.name == "tournament-brighter"
    assert scores.dtype == np.float32
    assert np.argsort(scores[:3]).tolist() == [0, 2, 1]
    assert scores[3] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tournament(0, lambda i, j: 1.0, 1), "at least 1 item"),
        (lambda: tournament(2, lambda i, j: 2.0, 1), "between 0 .* and 1 .*, got 2.0"),
        (lambda: tournament(2, lambda i, j: float("nan"), 1), "got nan"),
        (lambda: bradley_terry(np.zeros((2, 3))), r"square matrix .* got shape \(2, 3\)"),
        (lambda: bradley_terry(np.zeros((2, 2)), prior=0), "prior must be positive"),
        (lambda: TournamentReward(lambda a, b, p: 1.0, rounds=0), "rounds must be positive"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
