"""Orders, shares of earlier levels, determinism, and the split of the prompts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ttsnap.distill.curriculum import Stage, draw, held_out, stage_at, stages

STEPS = (0, 3, 6)


def groups(step: int, order: str = "clean-to-noisy", **changes: Any) -> Any:
    options: dict[str, Any] = {"groups": 6, "group_size": 3, "earlier": 0.5, "seed": 1, **changes}
    return draw(step, stage_at(stages(STEPS, order, 10), step), [2, 3, 5, 7, 11, 13, 17], [4] * 7, **options)


def test_orders() -> None:
    assert stages(STEPS, "clean-to-noisy", 10) == (
        Stage(0, 10, 6, ()), Stage(10, 10, 3, (6,)), Stage(20, 10, 0, (6, 3)),
    )  # fmt: skip
    assert [s.at for s in stages(STEPS, "noisy-to-clean", 10)] == [0, 3, 6]
    assert stages(STEPS, "uniform", 10) == (Stage(0, 30, None, STEPS),)
    assert stages(STEPS, "clean-to-noisy", (1, 2, 4)) == (
        Stage(0, 1, 6, ()), Stage(1, 2, 3, (6,)), Stage(3, 4, 0, (6, 3)),
    )  # fmt: skip
    assert stages(STEPS, "uniform", (1, 2, 4)) == (Stage(0, 7, None, STEPS),)
    with pytest.raises(ValueError, match="steps_per_level has 2 values"):
        stages(STEPS, "clean-to-noisy", (1, 2))
    plan = stages(STEPS, "clean-to-noisy", 10)
    assert [stage_at(plan, i).at for i in (0, 9, 10, 29)] == [6, 6, 3, 0]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    assert groups(25) == groups(25)
    assert groups(25) != groups(26)
    assert groups(25) != groups(25, seed=2)
    for group in groups(25):
        assert len(set(group.seeds)) == 3
        assert set(group.seeds) <= set(range(4))
    assert len({g.prompt for g in groups(25)}) == 6
    assert len(groups(25, groups=20)) == 20  # more groups than prompts


@pytest.mark.parametrize(("earlier", "old"), [(0.0, 0), (0.5, 3), (0.34, 2), (1.0, 6)])
def test_share_of_earlier_levels(earlier: float, old: int) -> None:
    for step in range(20, 30):
        found = Counter(g.step for g in groups(step, earlier=earlier))
        assert found[0] == 6 - old
        assert found[3] + found[6] == old
    assert {g.step for g in groups(3, earlier=earlier)} == {6}  # the first stage has none before it
    everywhere = Counter(g.step for i in range(20, 30) for g in groups(i, earlier=1.0))
    assert set(everywhere) == {3, 6}
    # At random places, so that processes and parts get alike shares.
    places = {i for step in range(20, 30) for i, g in enumerate(groups(step)) if g.step}
    assert places == set(range(6))


def test_uniform_draws_all_levels_alike() -> None:
    found = Counter(g.step for i in range(30) for g in groups(i, "uniform", groups=7))
    assert set(found) == set(STEPS)
    assert min(found.values()) > 45  # of 70 expected


def test_held_out_prompts_are_whole_and_equal_texts_stay_together() -> None:
    texts = [f"p{i % 10}" for i in range(20)]
    train, test = held_out(texts, 0.2, 0)
    assert sorted(train + test) == list(range(20))
    assert len(test) == 4
    assert not {texts[i] for i in train} & {texts[i] for i in test}
    assert held_out(texts, 0.2, 0) == (train, test)
    assert any(held_out(texts, 0.2, seed)[1] != test for seed in range(1, 5))
    assert held_out(texts, 0.0, 0) == (list(range(20)), [])
    assert len(held_out(texts, 0.01, 0)[1]) == 2  # one text at least
    with pytest.raises(ValueError, match="leaves none to train on"):
        held_out(["a"], 0.5, 0)
