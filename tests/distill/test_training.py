"""Settings; what a step trains on, its loss and its learning rate, against closed forms; the split
of the prompts."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch

from ttsnap.distill.config import DistillConfig, LossConfig
from ttsnap.distill.curriculum import Stage, draw, held_out, stage_at, stages
from ttsnap.distill.losses import group_loss, pairwise
from ttsnap.distill.training import SCHEDULES, scheduled
from ttsnap.files.plain_yaml import as_yaml, load_settings
from ttsnap.files.settings import build, to_json
from ttsnap.options.option import determining

STEPS = (0, 3, 6)


def groups(step, order="clean-to-noisy", **changes):
    options = {"groups": 6, "group_size": 3, "earlier": 0.5, "seed": 1, **changes}
    return draw(
        step, stage_at(stages(STEPS, order, 10), step), [2, 3, 5, 7, 11, 13, 17], [4] * 7, **options
    )


def test_orders():
    plan = stages(STEPS, "clean-to-noisy", 10)
    assert plan == (Stage(0, 10, 6, ()), Stage(10, 10, 3, (6,)), Stage(20, 10, 0, (6, 3)))
    assert [stage_at(plan, i).at for i in (0, 9, 10, 29)] == [6, 6, 3, 0]
    assert [s.at for s in stages(STEPS, "noisy-to-clean", 10)] == [0, 3, 6]
    each = stages(STEPS, "clean-to-noisy", (1, 2, 4))
    assert each == (Stage(0, 1, 6, ()), Stage(1, 2, 3, (6,)), Stage(3, 4, 0, (6, 3)))
    assert stages(STEPS, "uniform", 10) == (Stage(0, 30, None, STEPS),)
    assert stages(STEPS, "uniform", (1, 2, 4)) == (Stage(0, 7, None, STEPS),)
    with pytest.raises(ValueError, match="steps_per_level"):
        stages(STEPS, "clean-to-noisy", (1, 2))


def test_a_batch_is_a_function_of_seed_and_step():
    assert groups(25) == groups(25)
    assert groups(25) != groups(26)
    assert groups(25) != groups(25, seed=2)
    for group in groups(25):
        assert len(set(group.seeds)) == 3
        assert set(group.seeds) <= set(range(4))
    assert len({g.prompt for g in groups(25)}) == 6
    assert len(groups(25, groups=20)) == 20  # more groups than prompts


@pytest.mark.parametrize(("earlier", "old"), [(0.0, 0), (0.5, 3), (0.34, 2), (1.0, 6)])
def test_share_of_earlier_levels(earlier, old):
    drawn = [[g.step for g in groups(step, earlier=earlier)] for step in range(20, 30)]
    assert all(found.count(0) == 6 - old for found in drawn)
    assert {k for found in drawn for k in found} == ({0} if old < 6 else set()) | (
        {3, 6} if old else set()
    )
    assert {g.step for g in groups(3, earlier=earlier)} == {6}  # the first stage has none before it
    # At random places, so that processes and parts get alike shares.
    assert {i for found in drawn for i, step in enumerate(found) if step} == (
        set(range(6)) if old else set()
    )


def test_uniform_draws_all_levels_alike():
    found = Counter(g.step for i in range(30) for g in groups(i, "uniform", groups=7))
    assert set(found) == set(STEPS)
    assert min(found.values()) > 45  # of 70 expected


def test_held_out_prompts_are_whole_and_equal_texts_stay_together():
    texts = [f"p{i % 10}" for i in range(20)]
    train, test = held_out(texts, 0.2, 0)
    assert sorted(train + test) == list(range(20))
    assert len(test) == 4
    assert not {texts[i] for i in train} & {texts[i] for i in test}
    assert held_out(texts, 0.2, 0) == (train, test)
    assert any(held_out(texts, 0.2, seed)[1] != test for seed in range(1, 5))
    assert held_out(texts, 0.0, 0) == (list(range(20)), [])
    assert len(held_out(texts, 0.01, 0)[1]) == 2  # one text at least
    with pytest.raises(ValueError, match="leaves none"):
        held_out(["a"], 0.5, 0)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(3, 5, generator=g, dtype=torch.float64).requires_grad_()
    return p, torch.randn(3, 5, generator=g, dtype=torch.float64)


def test_mse_centred_and_plain():
    p = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    t = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert group_loss(p, t, LossConfig("mse", centred=False, plain=0.0)) == pytest.approx(
        (1 + 9 + 25 + 25) / 4
    )
    # Less the groups' means only the first group errs, by -1 and 1.
    assert group_loss(p, t, LossConfig("mse", plain=0.0)) == pytest.approx(0.5)
    assert group_loss(p, t, LossConfig("mse", plain=0.1)) == pytest.approx(0.5 + 0.1 * 15)


def test_pairwise_is_its_closed_form(batch):
    p, t = batch
    size, temperature = p.shape[1], 0.7
    q, found = (torch.sigmoid((x[:, :, None] - x[:, None]) / temperature) for x in (t, p))
    pairs = torch.ones(size, size).triu(1).bool()
    expected = -(q * found.log() + (1 - q) * (1 - found).log())[:, pairs].mean()
    loss = pairwise(p, t, temperature)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, p)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    # Shifted targets are a minimum.
    there = (t + 3).requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise(there, t, temperature), there)
    torch.testing.assert_close(gradient, torch.zeros_like(t))


@pytest.mark.parametrize("name", ["mse", "pairwise"])
def test_ties_and_constant_groups_give_finite_losses_and_no_pull_apart(name):
    constant = torch.full((2, 4), 0.5, dtype=torch.float64)
    p = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    loss = group_loss(p, constant, LossConfig(name, plain=0.0))
    assert loss.item() == pytest.approx(math.log(2) if name == "pairwise" else 0.0)
    (gradient,) = torch.autograd.grad(loss, p)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    # A tie among others: equal targets are pulled together.
    p = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 2.0]])
    (gradient,) = torch.autograd.grad(group_loss(p, target, LossConfig(name, plain=0.0)), p)
    assert gradient[0, 0] < gradient[0, 1]


GOOD = {"recordings": ["r"], "reward": "brightness"}


def factors(steps, **changes):
    """At these steps of 100."""
    bare = {"final_lr": 0.0, "warmup": 0, **changes}
    config = build(DistillConfig, {**GOOD, **bare})
    return [scheduled(step, 100, config) for step in steps]


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.5), ("rex", 2 / 3)])
def test_schedules(name, middle):
    values = factors(range(101), schedule=name)
    assert [values[i] for i in (0, 50, 100)] == pytest.approx([1, middle, 0])
    assert sorted(set(values), reverse=True) == values
    ends = factors((50, 100), schedule=name, final_lr=0.2)
    assert ends == pytest.approx([0.2 + 0.8 * middle, 0.2])


def test_a_learning_rate_rises_first():
    assert factors((0, 3), schedule="linear", warmup=4) == pytest.approx([0.25, 0.97])
    assert SCHEDULES["rex"](0.9) == pytest.approx(0.1 / 0.55)


def test_round_trip_and_what_determines(tmp_path):
    student = {"kind": "dora", "options": {"a": 1}}
    config = build(
        DistillConfig,
        {**GOOD, "levels": [1.0, 0.5], "student": student, "loss": {"name": "pairwise"}},
    )
    (tmp_path / "c.yaml").write_text(as_yaml(config))
    assert load_settings(DistillConfig, tmp_path / "c.yaml") == config
    moved = build(DistillConfig, {**to_json(config), "recordings": ["elsewhere"], "workers": 2})
    assert determining(moved) == determining(config)
    assert determining(build(DistillConfig, {**to_json(config), "seed": 1})) != determining(config)
    (tmp_path / "c.yaml").write_text(
        "recordings: [r]\nreward: brightness\nlr: 1e-4\nvalidation: 0\n"
    )
    config = load_settings(DistillConfig, tmp_path / "c.yaml")
    assert (config.lr, config.validation) == (1e-4, 0.0)  # YAML reads the first as a text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ""}, "reward is missing"),
        ({"recordings": []}, "no data"),
        ({"order": "random"}, "got 'random'"),
        ({"loss": {"name": "l1"}}, "got 'l1'"),
        ({"loss": {"temperature": 0}}, "loss.temperature must be greater than 0, got 0"),
        ({"student": {"kind": "head"}}, "unknown student.kind 'head'"),
        ({"student": {"space": "latents"}}, "reads pixels, not latents"),
        ({"student": {"per_level": True}}, "student.per_level"),
        ({"order": "uniform", "lr": [1.0, 0.5]}, "order uniform"),
        ({"student": {"rank": 0}}, "student.rank must be greater than or equal to 1, got 0"),
        ({"earlier": 1.5}, "earlier must be less than or equal to 1, got 1.5"),
        ({"validation": 1}, "validation must be less than 1, got 1"),
        ({"steps": []}, "at least one, got []"),
        ({"steps": [1, 1]}, "got [1, 1]"),
        ({"steps": [1], "levels": [0.5]}, "steps or levels"),
        ({"groups": 3, "accumulation": 2}, "groups (3) must be a multiple of accumulation (2)"),
        ({"group_size": 1}, "group_size must be 2"),
        ({"schedule": "cosine"}, "got 'cosine'"),
    ],
    ids=str,
)
def test_bad_values_are_refused_with_the_value(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(DistillConfig, {**GOOD, **changes})
