"""Noise-aware rewards on tiny networks: what they compute before, while and after they are trained, and their files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ttsnap.files.writing import sha256
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.noise_aware.files import fingerprint
from ttsnap.reward_models.noise_aware.network import ProjectedAttention, fourier, share
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.scorer import Scorer

from ..cover import each_once  # noqa: TID252
from ..golden import tiny  # noqa: TID252
from .test_golden import load

pytest.importorskip("peft")
FAMILIES = ("clip", "pickscore", "open_clip", "hpsv2", "imagereward", "aesthetics")
OWN = ("lora", "dora", "full", "per-level")
LEVELS = (0.2, 0.5, 0.9)
PROMPTS = [tiny.PROMPTS[i] for i in (2, 2, 3, 0, 2, 1)]
MIXED = torch.tensor([0.9, 0.2, 0.5, 0.25, 0.9, 0.52])


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scorer]:
    """Bases by name, each loaded once: nothing may change them."""
    made: dict[str, Scorer] = {}

    def get(name: str) -> Scorer:
        if name not in made:
            made[name] = load(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def student(base: Scorer, kind: str, **options: Any) -> NoiseAware:
    levels = LEVELS if kind == "per-level" else ()
    return NoiseAware(base, kind, **{"rank": 4, "levels": levels, **options})


def pictures(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shake(made: NoiseAware, size: float = 0.1) -> NoiseAware:
    """Other values for everything trainable, as if it were trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return made


def snapshot(made: NoiseAware) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.network.state_dict().items()}


def fit(made: NoiseAware, target: Tensor, lr: float, steps: int = 25) -> list[float]:
    """The losses of a few steps towards target scores of `pictures()` at levels MIXED."""
    images, losses = pictures(), []
    optimiser = torch.optim.Adam(list(made.trainable().values()), lr=lr)
    for _ in range(steps):
        loss = (made.predict(images, PROMPTS, MIXED) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


every_kind = pytest.mark.parametrize(("name", "kind"), each_once(list(FAMILIES), OWN))


@every_kind
def test_a_new_student_scores_as_its_base(name: str, kind: str, base_of: Callable[..., Scorer]) -> None:
    base, images = base_of(name), pictures()
    before = base(images, PROMPTS)
    made = student(base, kind)
    assert made.name == f"{name}-na"
    assert made.space == "pixels"
    for predicted in (made.predict(images, PROMPTS, MIXED), made(images, PROMPTS, MIXED)):
        assert predicted.dtype == torch.float32
        torch.testing.assert_close(predicted, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(base(images, PROMPTS), before)


@every_kind
def test_gradients_reach_all_that_is_trainable_and_nothing_else(
    name: str, kind: str, base_of: Callable[..., Scorer]
) -> None:
    base, images = base_of(name), pictures()
    before, whole = base(images, PROMPTS), fingerprint(base.network)
    made = shake(student(base, kind))
    assert torch.equal(base(images, PROMPTS), before)
    made.predict(images, PROMPTS, MIXED).sum().backward()
    trainable = made.trainable()
    assert {n for n, p in made.network.named_parameters() if p.requires_grad} == set(trainable)
    assert not [n for n, p in trainable.items() if p.grad is None]
    assert all(p.grad is None for n, p in made.network.named_parameters() if n not in trainable)
    assert fingerprint(base.network) == whole
    assert all(p.grad is None and not p.requires_grad for p in base.network.parameters())
    text = [n for n in trainable if re.search(r"text_model|text_projection|token_embedding|logit_scale", n)]
    assert not text  # Texts are encoded once for all levels.


@pytest.mark.parametrize(("name", "kind"), each_once(["pickscore", "hpsv2", "imagereward", "aesthetics"], OWN))
def test_a_level_dependent_target_is_learned(name: str, kind: str, base_of: Callable[..., Scorer]) -> None:
    base, images = base_of(name), pictures()
    clean = base(images, PROMPTS)
    target = clean * (1 - MIXED) + 0.3 * MIXED
    made = student(base, kind)
    before = snapshot(made)
    losses = fit(made, target, lr=1e-4 if kind == "full" else 3e-3)
    assert losses[-1] < 0.5 * losses[0]
    after = snapshot(made)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed
    assert changed <= set(made.trainable())
    assert torch.equal(base(images, PROMPTS), clean)
    learned = made(images, PROMPTS, MIXED)
    assert not torch.allclose(learned, clean, atol=1e-3)
    levels = MIXED.clone()
    levels[[1, 4]] = torch.tensor([0.0, -1e-9])
    mixed = made(images, PROMPTS, levels)
    assert torch.equal(mixed[[1, 4]], base(images[[1, 4]], [PROMPTS[1], PROMPTS[4]]))
    torch.testing.assert_close(mixed[[0, 2, 3, 5]], learned[[0, 2, 3, 5]], rtol=1e-5, atol=1e-5)
    assert torch.equal(made(images, PROMPTS, None), clean)
    assert torch.equal(made(images, PROMPTS, torch.zeros(6)), clean)


def test_the_level_is_told_by_itself_and_by_waves() -> None:
    features = fourier(torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(features[0], torch.tensor([0.0] * 5 + [1.0] * 4))
    assert features[1, :2].tolist() == pytest.approx([0.5, 1.0])  # the level, and sin(pi / 2)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_the_level_matters_through_its_embedding_only(kind: str, base_of: Callable[..., Scorer]) -> None:
    images = pictures(2)
    low, high = torch.tensor([0.2, 0.2]), torch.tensor([0.8, 0.8])
    for embedding in (True, False):
        made = shake(student(base_of("imagereward"), kind, level_embedding=embedding))
        at_low, at_high = made.predict(images, PROMPTS[:2], low), made.predict(images, PROMPTS[:2], high)
        assert (at_low - at_high).abs().min() > 1e-3 if embedding else torch.equal(at_low, at_high)
        assert any("embedding" in name.split(".")[0] for name in made.trainable()) == embedding


@every_kind
def test_batching_changes_nothing(name: str, kind: str, base_of: Callable[..., Scorer]) -> None:
    made = shake(student(base_of(name), kind, batch_size=2))
    images, levels = pictures(), torch.tensor([0.9, 0.2, 0.0, 0.25, 0.5, 0.52])
    together = made(images, PROMPTS, levels)
    alone = torch.cat([made(images[i : i + 1], PROMPTS[i : i + 1], levels[i]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    noisy = [0, 1, 3, 4, 5]
    batch = made.predict(images[noisy], [PROMPTS[i] for i in noisy], levels[noisy])
    torch.testing.assert_close(together[noisy], batch, rtol=1e-4, atol=1e-4)
    assert not together.requires_grad
    assert len(made(images[:0], [], levels[:0])) == 0
    with pytest.raises(ValueError, match="5 prompts for 6 images"):
        made(images, PROMPTS[:5], levels)


def test_the_nearest_level_has_the_adapter(base_of: Callable[..., Scorer]) -> None:
    base, images = base_of("pickscore"), pictures()
    made = student(base, "per-level", levels=(0.9, 0.2, 0.5))
    assert made.levels == LEVELS
    assert [made.network.nearest(v) for v in (0.01, 0.34, 0.36, 0.69, 0.71, 1.0)] == [0, 0, 1, 1, 2, 2]
    clean = base(images, PROMPTS)
    with torch.no_grad():  # Only the adapter of 0.5 is other than the base.
        for name, parameter in made.trainable().items():
            if name.startswith("copies.1.") and "lora_B" in name:
                parameter += 0.1
    changed = (made(images, PROMPTS, MIXED) - clean).abs() > 1e-3
    assert changed.tolist() == [False, False, True, False, False, True]


def test_stages_start_from_the_nearest_trained_level(base_of: Callable[..., Scorer]) -> None:
    made = student(base_of("pickscore"), "per-level")

    def adapters() -> list[Tensor]:
        parts = ([p.flatten() for n, p in made.trainable().items() if n.startswith(f"copies.{i}.")] for i in range(3))
        return [torch.cat(part).detach().clone() for part in parts]

    @torch.no_grad()
    def train(i: int) -> None:
        for name, parameter in made.trainable().items():
            parameter += 0.1 * name.startswith(f"copies.{i}.")

    new = adapters()
    made.begin_stage(0.2)
    assert all(torch.equal(a, b) for a, b in zip(adapters(), new, strict=True))  # nothing to start from
    train(0)
    made.begin_stage(0.5)
    first, second, third = adapters()
    assert torch.equal(second, first)
    assert torch.equal(third, new[2])
    train(1)
    made.begin_stage(0.5)  # after a restart within the stage: what was trained stays
    made.begin_stage(0.9)
    assert torch.equal(adapters()[2], first + 0.1)
    assert torch.equal(adapters()[0], first)


@every_kind
def test_saved_students_score_the_same(name: str, kind: str, base_of: Callable[..., Scorer], tmp_path: Path) -> None:
    base, images = base_of(name), pictures()
    made = shake(student(base, kind, rank=2))
    made.save_pretrained(tmp_path / "deep" / "saved", {"steps": 3})
    loaded = NoiseAware.from_pretrained(tmp_path / "deep" / "saved", base=base)
    expected = made(images, PROMPTS, MIXED)
    torch.testing.assert_close(loaded(images, PROMPTS, MIXED), expected, rtol=1e-6, atol=1e-6)
    assert (loaded.kind, loaded.rank, loaded.levels) == (kind, 2, made.levels)
    header = json.loads((tmp_path / "deep" / "saved" / "adapter.json").read_text())
    assert header["info"] == {"steps": 3}
    assert header["kind"] == kind
    assert sorted(p.name for p in (tmp_path / "deep" / "saved").iterdir()) == ["adapter.json", "adapter.safetensors"]


@pytest.mark.parametrize("name", ["clip", "pickscore", "imagereward", "aesthetics"])
def test_make_reward_loads_folders_with_their_base(name: str, tmp_path: Path) -> None:
    base = load(name, tmp_path)
    made = shake(student(base, "lora", level_embedding=False, spec=f"{name}:{tmp_path}"))
    made.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="whose weights are not loaded because a file names them"):
        make_reward(f"noise-aware:{tmp_path / 'saved'}")
    named = f"noise-aware:{tmp_path / 'saved'} on {name}:{tmp_path}"
    loaded: Any = make_reward(named, dtype=torch.float32)
    assert loaded.name == f"{name}-na"
    images = pictures()
    torch.testing.assert_close(loaded(images, PROMPTS, MIXED), made(images, PROMPTS, MIXED), rtol=1e-6, atol=1e-6)
    half: Any = make_reward(named, dtype=torch.bfloat16)  # the same checkpoint
    assert half.base.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in half.trainable().values())


@every_kind
def test_a_base_in_half_precision(name: str, kind: str, tmp_path: Path) -> None:
    base = load(name, tmp_path, dtype=torch.bfloat16)
    made, images = student(base, kind), pictures()
    predicted = made.predict(images, PROMPTS, MIXED)
    assert predicted.dtype == torch.float32
    clean = base(images, PROMPTS)
    assert (predicted - clean).abs().max() < 0.05 * clean.abs().max()
    shake(made).predict(images, PROMPTS, MIXED).sum().backward()
    wanted = torch.bfloat16 if kind == "full" else torch.float32
    assert {p.dtype for n, p in made.trainable().items() if "copies" in n and "head" not in n} == {wanted}


def test_autocast_keeps_the_shift_of_scores_fine(base_of: Callable[..., Scorer]) -> None:
    made = shake(student(base_of("pickscore"), "lora"), 0.01)
    with torch.no_grad():
        made.network.embedding.score.bias[1] = 20.003  # type: ignore[union-attr]
        made.network.embedding.score.weight.zero_()  # type: ignore[union-attr]
        made.network.embedding.score.bias[0] = -30.0  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = made.predict(pictures(), PROMPTS, MIXED)
    torch.testing.assert_close(predicted, torch.full((6,), 20.003), rtol=0, atol=1e-4)


def test_the_weights_are_in_memory_once(base_of: Callable[..., Scorer]) -> None:
    base = base_of("imagereward")
    count = sum(p.numel() for p in base.network.parameters())
    made = student(base, "per-level")
    trained = sum(p.numel() for p in made.trainable().values())
    assert sum(p.numel() for p in made.network.parameters()) == count + trained
    copied = share(base.network, r"head\..*")
    assert copied["head"][0].weight is not base.network["head"][0].weight  # type: ignore[index]
    assert copied["vision"].embeddings.class_embedding is base.network["vision"].embeddings.class_embedding  # type: ignore[index]


def test_students_can_be_copied_and_stay_in_evaluation_mode(base_of: Callable[..., Scorer]) -> None:
    made = shake(student(base_of("imagereward"), "lora"))
    images = pictures()
    expected = made(images, PROMPTS, MIXED)
    other = copy.deepcopy(made)
    assert torch.equal(other(images, PROMPTS, MIXED), expected)
    shake(other)
    assert torch.equal(made(images, PROMPTS, MIXED), expected)
    assert not torch.allclose(other(images, PROMPTS, MIXED), expected, atol=1e-3)
    made.network.train()
    assert not any(module.training for module in made.network.modules())


def test_seeds_fix_the_start_and_leave_torch_alone(base_of: Callable[..., Scorer]) -> None:
    base = base_of("clip")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = student(base, "lora", seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = student(base, "lora", seed=1), student(base, "lora", seed=2)
    values = [torch.cat([p.flatten() for p in made.trainable().values()]) for made in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_flops_are_the_bases_and_a_little_more(base_of: Callable[..., Scorer]) -> None:
    base = base_of("imagereward")
    made = student(base, "lora", rank=1)
    assert base.flops < made.flops < 1.2 * base.flops
    made.check(["short"])


def test_opened_attention_equals_torchs() -> None:
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    torch.nn.init.normal_(attention.in_proj_bias)
    x, mask = torch.randn(3, 5, 32), torch.randn(5, 5)
    for attn_mask in (None, mask):
        ours = ProjectedAttention(attention)(x, x, x, need_weights=False, attn_mask=attn_mask)[0]
        theirs = attention(x, x, x, need_weights=False, attn_mask=attn_mask)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="only batch-first self-attention"):
        ProjectedAttention(torch.nn.MultiheadAttention(32, 4))


def test_heads_of_earlier_versions_are_told_what_became_of_them(base_of: Callable[..., Scorer], tmp_path: Path) -> None:
    student(base_of("clip"), "lora").save_pretrained(tmp_path)
    header = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**header, "kind": "head", "space": "features"}))
    with pytest.raises(
        ValueError, match="is of a head on 'features'; ttsnap no longer has heads, as they ranked worse"
    ):
        NoiseAware.from_pretrained(tmp_path, base=base_of("clip"))


@pytest.mark.parametrize("level", [float("nan"), 999.0, torch.tensor([0.5, 2.0]), torch.zeros(3)])
def test_levels_that_are_none_are_refused(level: Any, base_of: Callable[..., Scorer]) -> None:
    made = student(base_of("clip"), "lora")
    with pytest.raises(ValueError, match=r"level must be 2 noise levels in \[0, 1\]"):
        made(pictures(2), PROMPTS[:2], level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lovely"}, "kind is one of lora, dora, per-level, full, got 'lovely'"),
        ({"kind": "head"}, "kind is one of .* got 'head'"),
        ({"kind": "lora", "levels": (0.5,)}, "other kinds none"),
        ({"kind": "per-level"}, r"per-level takes different levels in \(0, 1\]"),
        ({"kind": "per-level", "levels": (0.5, 0.5)}, "per-level takes different levels"),
        ({"kind": "per-level", "levels": (0.0, 0.5)}, "per-level takes different levels"),
        ({"levels": (0.5,)}, "other kinds none; got .* for lora"),
        ({"rank": 0}, "rank and batch_size must be at least 1, got 0 and 32"),
    ],
)
def test_settings_that_do_not_fit(options: Any, message: str, base_of: Callable[..., Scorer]) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseAware(base_of("clip"), **options)


def test_bases_that_do_not_fit(base_of: Callable[..., Scorer]) -> None:
    class Plain(Scorer):
        name = "plain"

    class Odd(Plain):
        adapted = trained = level_sites = "nothing"

    base = base_of("clip")
    for other in (Brightness(), Plain(base.network, base.preprocess)):
        with pytest.raises(ValueError, match=f"reward '{other.name}' cannot be made noise-aware; take one"):
            NoiseAware(other)  # type: ignore[arg-type]
    for kind in ("lora", "full"):
        with pytest.raises(ValueError, match="of plain matches 'nothing'; is it another architecture"):
            NoiseAware(Odd(base.network, base.preprocess), kind)


def test_nearly_clean_estimates_may_be_left_to_the_base(base_of: Callable[..., Scorer], tmp_path: Path) -> None:
    base = base_of("pickscore")
    made = shake(student(base, "lora"))
    made.base_below = 0.5
    levels, prompts = torch.tensor([0.0, 0.2, 0.5, 0.51, 0.8, 1.0]), ["a red circle"] * 6
    scores, bases = made(pictures(), prompts, levels), base(pictures(), prompts)
    torch.testing.assert_close(scores[:3], bases[:3], atol=1e-5, rtol=1e-5)
    assert (scores[3:] - bases[3:]).abs().max() > 1e-4
    made.save_pretrained(tmp_path)
    again = NoiseAware.from_pretrained(tmp_path, base=base)
    torch.testing.assert_close(again(pictures(), prompts, levels), scores, atol=1e-6, rtol=1e-6)
    rewrite(tmp_path, base_below=3.0)
    with pytest.raises(ValueError, match="settings that no NoiseAware wrote"):
        NoiseAware.from_pretrained(tmp_path, base=base)


class Judge(Brightness):
    """A black box: it tells a score and the tokens that it took, and has no network."""

    name, tokens, example = "judge", 9, "anything"

    def __call__(self, images: Tensor, prompts: Any, level: Any = None) -> Tensor:
        assert level is None
        self.tokens_taken = [7] * len(images)
        return super().__call__(images, prompts)


@pytest.mark.parametrize("kind", OWN)
def test_a_network_of_another_reward_is_trained_for_a_black_box(
    kind: str, base_of: Callable[..., Scorer], tmp_path: Path
) -> None:
    scorer, judge, images = base_of("pickscore"), Judge(), pictures()
    before, targets = scorer(images, PROMPTS), judge(images, PROMPTS)
    made = student(judge, kind, scorer=scorer, spec="mine.py:Judge")  # type: ignore[arg-type]
    assert (made.name, made.base, made.tokens, made.scores_estimates_apart) == ("judge-na", judge, 9, True)
    torch.testing.assert_close(made(images, PROMPTS, MIXED), before, rtol=1e-5, atol=1e-5)
    made.match(before.numpy(), targets.numpy())
    in_units = made(images, PROMPTS, MIXED)
    assert (in_units.mean().item(), in_units.std().item()) == pytest.approx(
        (targets.mean().item(), targets.std().item()), rel=1e-3
    )
    assert torch.equal(in_units.argsort(), before.argsort())
    losses = fit(made, targets, lr=1e-4 if kind == "full" else 3e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(scorer(images, PROMPTS), before)

    made.base_below = 0.21
    scores = made(images, PROMPTS, MIXED)
    assert scores[1] == targets[1]
    assert made.tokens_taken == [0, 7, 0, 0, 0, 0]
    assert torch.equal(made(images, PROMPTS), targets)
    assert torch.equal(torch.as_tensor(made.differentiable(images, PROMPTS)), targets)
    assert made.flops > scorer.flops
    made.save_pretrained(tmp_path)
    again = NoiseAware.from_pretrained(tmp_path, base=judge, scorer=scorer)
    torch.testing.assert_close(again(images, PROMPTS, MIXED), scores, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="was trained for another checkpoint of 'pickscore'"):
        NoiseAware.from_pretrained(tmp_path, base=judge, scorer=base_of("imagereward"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"is for the base 'mine.py:Judge', which is no reward's name; load it .*'noise-aware:.* on REWARD'"),
        ({"base": "http://localhost:1"}, "is for the base 'http://localhost:1', which is no reward's name"),
        ({"base": "brightness", "network": "mine.py:f"}, "is for the network 'mine.py:f', which is no reward's name"),
        ({"base": "brightness", "network": "clip:x"}, "the network 'clip:x', whose weights are not loaded .* scorer="),
        ({"base": "brightness", "network": "noise-aware"}, "which is no reward's name; load it with scorer="),
        ({"base": "brightness", "network": "colourfulness"}, "needs a base with weights, got 'colourfulness'"),
    ],
)
def test_a_file_chooses_no_code_and_no_address(
    changes: Any, message: str, base_of: Callable[..., Scorer], tmp_path: Path
) -> None:
    student(Judge(), "lora", scorer=base_of("clip"), spec="mine.py:Judge").save_pretrained(tmp_path)  # type: ignore[arg-type]
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        make_reward(f"noise-aware:{tmp_path}")


def test_a_file_names_no_base_but_a_reward_that_has_weights_already(
    base_of: Callable[..., Scorer], tmp_path: Path
) -> None:
    student(base_of("clip"), "lora").save_pretrained(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(images, prompts): ...\n")
    for base, message in (
        *((base, "no reward's name") for base in (f"{tmp_path}/mine.py:f", "os:getcwd", "noise-aware:x", None, 3)),
        ("brightness", "needs a base with weights"),
        ("imagereward:/nowhere", "because a file names"),
    ):
        rewrite(tmp_path, base=base)
        with pytest.raises(ValueError, match=message):
            NoiseAware.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def rewrite(folder: Path, **changes: Any) -> None:
    header = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**header, **changes}))


def rehash(folder: Path) -> None:
    rewrite(folder, sha256=sha256(folder / "adapter.safetensors"))


def test_damaged_and_foreign_folders_are_refused(base_of: Callable[..., Scorer], tmp_path: Path) -> None:
    from safetensors.torch import load as load_tensors
    from safetensors.torch import save_file

    base = base_of("clip")
    header, tensors = tmp_path / "adapter.json", tmp_path / "adapter.safetensors"

    def save() -> None:
        shake(student(base, "lora")).save_pretrained(tmp_path)

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            NoiseAware.from_pretrained(tmp_path, **{"base": base, **options})

    save()
    NoiseAware.from_pretrained(tmp_path, base=base)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.network.visual_projection.weight[0, 0] += 0.1  # type: ignore[index,operator,union-attr]
    refused("was trained for another checkpoint of 'clip'", base=other)
    refused("needs a base with weights, got 'brightness'", base=Brightness())

    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    refused(r"adapter.safetensors is not the one that adapter.json describes: damaged")
    rehash(tmp_path)
    refused("cannot be read as weights, is it whole")
    torch.save({"a": Path("x")}, tensors)  # a pickle that would run code, with a header that vouches for it
    rehash(tmp_path)
    refused("cannot be read as weights, is it whole")
    state = load_tensors(whole)
    name = next(iter(state))
    for wrong in ({**state, "more": torch.zeros(1)}, {n: t for n, t in state.items() if n != name}):
        save_file(wrong, tensors)
        rehash(tmp_path)
        refused(r"is for another model: 1 tensors differ, such as")
    save_file({**state, name: torch.zeros(1)}, tensors)
    rehash(tmp_path)
    refused(f"is for another model: 1 tensors differ, such as {re.escape(name)}")
    tensors.unlink()
    refused("holds no adapter.safetensors; copy both files")

    save()
    for changes, message in (
        ({"kind": "lovely"}, "is of the unknown kind 'lovely'; known are lora, dora"),
        ({"format": 2}, "is not of format 1"),
        ({"rank": "4"}, "has settings that no NoiseAware wrote"),
        ({"rank": -1}, "has settings that no NoiseAware wrote: rank must be"),
        ({"level_embedding": 1}, "has settings that no NoiseAware wrote"),
        ({"fingerprint": None}, "was trained for another checkpoint"),
        ({"rank": 3}, "is for another model"),
    ):
        save()
        rewrite(tmp_path, **changes)
        refused(message)
    header.unlink()
    refused("adapter.json cannot be read, is .* a noise-aware reward")


@pytest.mark.parametrize("spec", ["noise-aware", "noise-aware:/nowhere", "noise-aware:"])
def test_a_folder_is_needed(spec: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        make_reward(spec)


def test_a_failed_save_leaves_what_was_there(base_of: Callable[..., Scorer], tmp_path: Path) -> None:
    made = student(base_of("clip"), "lora")
    made.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"cannot save to .*: Object of type Path"):
        shake(made).save_pretrained(tmp_path, {"where": type("Path", (), {})()})
    with pytest.raises(ValueError, match="cannot save to"):
        made.save_pretrained(tmp_path / "adapter.json" / "below")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
