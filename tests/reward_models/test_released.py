"""Noise-aware rewards as DOG-Trim releases them: whole state dicts in the published layouts, on
tiny networks."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.cover import each_once
from tests.reward_models.published import load
from tests.reward_models.test_noise_aware import LEVELS, PROMPTS, pictures, shake, student
from ttsnap.reward_models import make_reward
from ttsnap.reward_models.noise_aware.released import ReleasedNoiseAware, export
from ttsnap.reward_models.noise_aware.schedule import level_of

NAMES = ("hpsv2", "pickscore", "imagereward")


def changed(scorer, seed):
    """A full fine-tune by published names: each floating tensor moved, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in scorer.network.state_dict().items():
        noise = 0.05 * torch.randn(tensor.shape, generator=generator)
        moved[scorer.published.get(name, name)] = (
            tensor + noise if tensor.is_floating_point() else tensor.clone()
        )
    return moved


def by_formula(scorer, state, images, prompts):
    """The published score in float64, on a network that has loaded the state itself."""
    own = {published: name for name, published in scorer.published.items()}
    scorer.network.load_state_dict(
        {own.get(name, name): tensor for name, tensor in state.items()}, strict=False
    )
    scorer.network.double()
    if scorer.name == "imagereward":
        scorer.network["head"].float()  # it stays in float32, as published
        return float(scorer(images, prompts))
    image, text = scorer.embed_images(images), scorer.embed_texts(prompts)
    cosine = torch.nn.functional.cosine_similarity(image, text)
    return float(
        cosine * state["logit_scale"].double().exp() if scorer.name == "pickscore" else cosine
    )


def released(base, folder, states, spec=""):
    """These files as a reward. spec: what follows the folder's path."""
    folder.mkdir()
    for name, state in states.items():
        torch.save(state, folder / name)
    return ReleasedNoiseAware.from_pretrained(f"{folder}{spec}", base=base)


def test_levels_are_those_of_fluxs_shifted_schedule():
    """By diffusers' own scheduler with FLUX.1 dev's configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for steps in (28, 35):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        mu = calculate_shift(1024, 256, 4096, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        expected = [float(sigma) for sigma in scheduler.sigmas]
        assert [level_of(n, steps) for n in range(1, steps + 2)] == pytest.approx(
            expected, abs=1e-6
        )


@pytest.mark.parametrize(("name", "prefix"), each_once(NAMES, ["", "model."]))
def test_released_files_score_as_their_formula(name, prefix, tmp_path, published):
    """Each estimate by the weights of the nearest level, finished images by the base's own."""
    base = load(name, tmp_path)
    states = {n: changed(base, n) for n in (7, 14, 21)}
    files = {
        f"step{n}.pt": {prefix + key: value for key, value in state.items()}
        for n, state in states.items()
    }
    reward, images = released(base, tmp_path / name, files), pictures()
    levels = torch.tensor([level_of(7), 0.0, level_of(21) + 0.02, level_of(14), 0.1, 1.0])
    scores, expected = reward(images, PROMPTS, levels), published(name)(images, PROMPTS)
    alone = load(name, tmp_path)
    for row, n in ((0, 7), (2, 21), (3, 14), (5, 7)):
        one = by_formula(alone, states[n], images[[row]], [PROMPTS[row]])
        assert float(scores[row]) == pytest.approx(one, rel=2e-4, abs=2e-5)
        assert abs(float(scores[row] - expected[row])) > 1e-3
    for finished in (reward.base(images, PROMPTS), reward(images, PROMPTS)):
        assert torch.allclose(finished, expected, atol=1e-5)
    assert torch.allclose(scores[[1, 4]], expected[[1, 4]], atol=1e-5)
    with pytest.raises(ValueError, match="noise levels"):
        reward(images, PROMPTS, torch.tensor([0.5, 2.0]))


def test_gradients_outlive_an_exchange_of_weights(tmp_path):
    base = load("pickscore", tmp_path)
    reward = released(base, tmp_path / "pickscore", {"step7.pt": changed(base, 7)})
    images, alone = pictures(2).requires_grad_(), pictures(2).requires_grad_()
    score = reward.differentiable(images, PROMPTS[:2], level_of(7))
    reward(pictures(2), PROMPTS[:2])
    for one in (score, reward.differentiable(alone, PROMPTS[:2], level_of(7))):
        torch.as_tensor(one).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, alone.grad)


class Code:
    def __reduce__(self):
        return sys.exit, ()


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda state: {"logit_scale": Code()}, "could run code"),
        (lambda state: {f"trainer.{name}": tensor for name, tensor in state.items()}, "0 of"),
        (lambda state: {**state, "logit_scale": torch.zeros(3)}, "logit_scale"),
        (lambda state: dict(list(state.items())[: len(state) // 2]), "missing"),
        (lambda state: {"state_dict": "no tensors"}, "tensors by name"),
    ],
)
def test_files_that_do_not_fit_are_refused(spoil, wrong, tmp_path):
    """The authors' loader would load what fits, and say nothing."""
    base = load("pickscore", tmp_path)
    with pytest.raises(ValueError, match=wrong):
        released(base, tmp_path / "pickscore", {"step7.pt": spoil(changed(base, 7))})


@pytest.mark.parametrize(
    "name", ["hpsv2", pytest.param("pickscore", marks=pytest.mark.slow), "imagereward"]
)
def test_what_was_distilled_here_is_exported_in_their_layout(name, tmp_path):
    """Their loader is torch.load and load_state_dict into the published network; ours reads the
    folder, too."""
    made = shake(student(load(name, tmp_path), "per-level"))
    files = export(made, tmp_path / name)
    reward = ReleasedNoiseAware.from_pretrained(str(tmp_path / name), base=load(name, tmp_path))
    levels = torch.tensor([LEVELS[i % 3] for i in range(6)])
    assert torch.allclose(
        reward(pictures(), PROMPTS, levels), made(pictures(), PROMPTS, levels), atol=1e-4
    )
    alone = load(name, tmp_path)
    for path, level in files.items():
        one = by_formula(alone, torch.load(path, weights_only=True), pictures(1), PROMPTS[:1])
        assert float(made(pictures(1), PROMPTS[:1], level)) == pytest.approx(
            one, rel=2e-4, abs=2e-5
        )


def test_levels_that_are_left_to_the_base_are_exported_as_its_own(tmp_path, published):
    made = shake(student(published("pickscore"), "full", levels=LEVELS))
    made.base_below = LEVELS[1]
    export(made, tmp_path / "pickscore")
    reward = ReleasedNoiseAware.from_pretrained(
        str(tmp_path / "pickscore"), base=load("pickscore", tmp_path)
    )
    levels = torch.tensor([LEVELS[i % 3] for i in range(6)])
    assert torch.allclose(
        reward(pictures(), PROMPTS, levels), made(pictures(), PROMPTS, levels), atol=1e-6
    )
    nearest = min(range(1, 36), key=lambda n: abs(level_of(n) - LEVELS[0]))
    own, plain = (
        torch.load(tmp_path / "pickscore" / f"step{nearest}.pt", weights_only=True),
        made.scorer.network,
    )
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in own.items())


def test_what_is_no_whole_network_or_says_too_little_is_refused(tmp_path, published):
    with pytest.raises(ValueError, match="per-level"):
        export(student(published("pickscore"), "lora"), tmp_path / "out")
    (tmp_path / "other").mkdir()
    torch.save({}, tmp_path / "other" / "step7.pt")
    told = {
        "nowhere": "OWNER/NAME",
        "{}": "step7.pt",
        "{}/other@28": "on REWARD",
        "{}/other@0/28": "no file",
    }
    for spec, wrong in told.items():
        with pytest.raises(ValueError, match=wrong):
            make_reward(f"noise-aware:{spec.format(tmp_path)}")


@pytest.mark.parametrize(
    ("file", "spec", "level"),
    [
        ("step7.pt", "/step7.pt@3/28", level_of(3, 28)),
        ("Ct7.pt", "@28", level_of(7, 28)),
        ("step1.pt", "", 1.0),
    ],
)
def test_one_file_and_other_steps(file, spec, level, tmp_path):
    """What is equal to the base is kept once."""
    base = load("pickscore", tmp_path)
    state = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    state["logit_scale"] += 1
    reward = released(base, tmp_path / "pickscore", {file: state}, spec)
    assert list(reward.weights) == [0.0, level]
    assert set(reward.weights[level]) == {"logit_scale"}
