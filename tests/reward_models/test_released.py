"""Noise-aware rewards as DOG-Trim releases them: whole state dicts in the published layouts, on tiny networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cover import each_once
from tests.reward_models.test_golden import load
from tests.reward_models.test_noise_aware import LEVELS, PROMPTS, pictures, shake, student
from ttsnap.reward_models import make_reward
from ttsnap.reward_models.noise_aware.released import ReleasedNoiseAware, export
from ttsnap.reward_models.noise_aware.schedule import level_of
from ttsnap.reward_models.scorer import Scorer

NAMES = ("hpsv2", "pickscore", "imagereward")


def changed(scorer: Scorer, seed: int) -> dict[str, Tensor]:
    """A full fine-tune by published names: each floating tensor moved, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in scorer.network.state_dict().items():
        noise = 0.05 * torch.randn(tensor.shape, generator=generator)
        moved[scorer.published.get(name, name)] = tensor + noise if tensor.is_floating_point() else tensor.clone()
    return moved


def by_formula(scorer: Scorer, state: dict[str, Tensor], images: Tensor, prompts: list[str]) -> Tensor:
    """The published score in float64, on a network that has loaded the state itself."""
    own = {published: name for name, published in scorer.published.items()}
    scorer.network.load_state_dict({own.get(name, name): tensor for name, tensor in state.items()}, strict=False)
    scorer.network.double()
    if scorer.name == "imagereward":
        scorer.network["head"].float()  # it stays in float32, as published
        return scorer(images, prompts)
    image, text = scorer.embed_images(images), scorer.embed_texts(prompts)
    cosine = torch.nn.functional.cosine_similarity(image, text)
    return cosine * state["logit_scale"].double().exp() if scorer.name == "pickscore" else cosine


def test_levels_are_those_of_fluxs_shifted_schedule() -> None:
    """By diffusers' own scheduler with FLUX.1 dev's configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for steps in (28, 35):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        mu = calculate_shift(1024, 256, 4096, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        expected = [float(sigma) for sigma in scheduler.sigmas]
        assert [level_of(n, steps) for n in range(1, steps + 2)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "prefix"), each_once(NAMES, ["", "model."]))
def test_released_files_score_as_their_formula(name: str, prefix: str, tmp_path: Path) -> None:
    """Each estimate by the weights of the nearest level, finished images by the base's own."""
    base, folder = load(name, tmp_path), tmp_path / name
    folder.mkdir()
    states = {n: changed(base, n) for n in (7, 14, 21)}
    for n, state in states.items():
        torch.save({prefix + key: value for key, value in state.items()}, folder / f"step{n}.pt")
    reward = ReleasedNoiseAware.from_pretrained(str(folder), base=base)
    images, plain = pictures(), load(name, tmp_path)
    levels = torch.tensor([level_of(7), 0.0, level_of(21) + 0.02, level_of(14), 0.1, 1.0])
    scores = reward(images, PROMPTS, levels)
    expected = plain(images, PROMPTS)
    for row, n in ((0, 7), (2, 21), (3, 14), (5, 7)):
        one = by_formula(load(name, tmp_path), states[n], images[[row]], [PROMPTS[row]])
        assert float(scores[row]) == pytest.approx(float(one), rel=2e-4, abs=2e-5)
        assert abs(float(scores[row] - expected[row])) > 1e-3
    assert torch.allclose(scores[[1, 4]], expected[[1, 4]], atol=1e-5)
    with pytest.raises(ValueError, match="noise levels"):
        reward(images, PROMPTS, torch.tensor([0.5, 2.0]))
    assert torch.allclose(reward.base(images, PROMPTS), expected, atol=1e-5)
    assert torch.allclose(reward(images, PROMPTS), expected, atol=1e-5)


def test_gradients_outlive_an_exchange_of_weights(tmp_path: Path) -> None:
    base, folder = load("pickscore", tmp_path), tmp_path / "pickscore"
    folder.mkdir()
    torch.save(changed(base, 7), folder / "step7.pt")
    reward = ReleasedNoiseAware.from_pretrained(str(folder), base=base)
    images = pictures(2).requires_grad_()
    score = reward.differentiable(images, PROMPTS[:2], level_of(7))
    reward(pictures(2), PROMPTS[:2])
    score.sum().backward()
    alone = pictures(2).requires_grad_()
    torch.as_tensor(reward.differentiable(alone, PROMPTS[:2], level_of(7))).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, alone.grad)


def test_equal_tensors_are_kept_once(tmp_path: Path) -> None:
    base, folder = load("pickscore", tmp_path), tmp_path / "pickscore"
    folder.mkdir()
    state = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    state["logit_scale"] += 1
    torch.save(state, folder / "Ct7.pt")
    reward = ReleasedNoiseAware.from_pretrained(str(folder), base=base)
    assert set(reward.weights[level_of(7)]) == {"logit_scale"}


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda state: {f"trainer.{name}": tensor for name, tensor in state.items()}, "0 of"),
        (lambda state: {**state, "logit_scale": torch.zeros(3)}, "logit_scale"),
        (lambda state: dict(list(state.items())[: len(state) // 2]), "missing"),
        (lambda state: {"state_dict": "no tensors"}, "tensors by name"),
    ],
)
def test_files_that_do_not_fit_are_refused(spoil: Any, wrong: str, tmp_path: Path) -> None:
    """The authors' loader would load what fits, and say nothing."""
    base, folder = load("pickscore", tmp_path), tmp_path / "pickscore"
    folder.mkdir()
    torch.save(spoil(changed(base, 7)), folder / "step7.pt")
    with pytest.raises(ValueError, match=wrong):
        ReleasedNoiseAware.from_pretrained(str(folder), base=base)


def test_a_pickle_with_code_runs_nothing(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "pickscore"
    folder.mkdir()
    torch.save({"logit_scale": Code()}, folder / "step7.pt")
    with pytest.raises(ValueError, match="could run code"):
        ReleasedNoiseAware.from_pretrained(str(folder), base=load("pickscore", tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["hpsv2", pytest.param("pickscore", marks=pytest.mark.slow), "imagereward"])
def test_what_was_distilled_here_is_exported_in_their_layout(name: str, tmp_path: Path) -> None:
    """Their loader is torch.load and load_state_dict into the published network; ours reads the folder, too."""
    base = load(name, tmp_path)
    made = shake(student(base, "per-level"))
    files = export(made, tmp_path / name)
    reward = ReleasedNoiseAware.from_pretrained(str(tmp_path / name), base=load(name, tmp_path))
    levels = torch.tensor([LEVELS[i % 3] for i in range(6)])
    assert torch.allclose(reward(pictures(), PROMPTS, levels), made(pictures(), PROMPTS, levels), atol=1e-4)
    for path, level in files.items():
        one = by_formula(load(name, tmp_path), torch.load(path, weights_only=True), pictures(1), PROMPTS[:1])
        assert float(made(pictures(1), PROMPTS[:1], level)) == pytest.approx(float(one), rel=2e-4, abs=2e-5)


def test_levels_that_are_left_to_the_base_are_exported_as_its_own(tmp_path: Path) -> None:
    made = shake(student(load("pickscore", tmp_path), "full", levels=LEVELS))
    made.base_below = LEVELS[1]
    export(made, tmp_path / "pickscore")
    reward = ReleasedNoiseAware.from_pretrained(str(tmp_path / "pickscore"), base=load("pickscore", tmp_path))
    levels = torch.tensor([LEVELS[i % 3] for i in range(6)])
    assert torch.allclose(reward(pictures(), PROMPTS, levels), made(pictures(), PROMPTS, levels), atol=1e-6)
    own = torch.load(tmp_path / "pickscore" / f"step{nearest(LEVELS[0])}.pt", weights_only=True)
    plain = made.scorer.network.state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in own.items())


def nearest(level: float) -> int:
    return min(range(1, 36), key=lambda n: abs(level_of(n) - level))


def test_only_whole_networks_are_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="per-level"):
        export(student(load("pickscore", tmp_path), "lora"), tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [("nowhere", "OWNER/NAME"), ("{}", "step7.pt"), ("{}/other@28", "on REWARD"), ("{}/other@0/28", "no file")],
)
def test_sources_that_say_too_little(spec: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    torch.save({}, tmp_path / "other" / "step7.pt")
    with pytest.raises(ValueError, match=wrong):
        make_reward(f"noise-aware:{spec.format(tmp_path)}")


def test_one_file_and_other_steps(tmp_path: Path) -> None:
    base = load("pickscore", tmp_path)
    (tmp_path / "pickscore").mkdir()
    path = tmp_path / "pickscore" / "step7.pt"
    torch.save(changed(base, 7), path)
    one = ReleasedNoiseAware.from_pretrained(f"{path}@3/28", base=load("pickscore", tmp_path))
    assert list(one.weights) == [0.0, level_of(3, 28)]
    many = ReleasedNoiseAware.from_pretrained(f"{path.parent}@28", base=load("pickscore", tmp_path))
    assert list(many.weights) == [0.0, level_of(7, 28)]
    assert math.isclose(level_of(1), 1.0)
