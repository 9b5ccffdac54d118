"""Noise-aware rewards on tiny networks: what they compute before, while and after they are trained,
and their files."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from ttsnap.files.writing import sha256
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.noise_aware.files import fingerprint
from ttsnap.reward_models.noise_aware.network import ProjectedAttention, fourier
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.scorer import Scorer

from ..cover import each_once  # noqa: TID252
from ..golden import tiny  # noqa: TID252
from .published import load

pytest.importorskip("peft")
OWN = ("lora", "dora", "full", "per-level")
LEVELS = (0.2, 0.5, 0.9)
PROMPTS = [tiny.PROMPTS[i] for i in (2, 2, 3, 0, 2, 1)]
MIXED = torch.tensor([0.9, 0.2, 0.5, 0.25, 0.9, 0.52])


def student(base, kind, **options):
    levels = LEVELS if kind == "per-level" else ()
    return NoiseAware(base, kind, **{"rank": 4, "levels": levels, **options})


def pictures(n=6):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shake(made, size=0.1):
    """Other values for everything trainable, as if it were trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return made


def fit(made, target, steps=25):
    """Halve the loss towards target scores of `pictures()` at levels MIXED, in a few steps."""
    images, losses = pictures(), []
    optimiser = torch.optim.Adam(
        list(made.trainable().values()), lr=1e-4 if made.kind == "full" else 3e-3
    )
    for _ in range(steps):
        loss = (made.predict(images, PROMPTS, MIXED) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


FAMILIES = ("pickscore", "hpsv2", "imagereward", "aesthetics")
every_kind = pytest.mark.parametrize(("name", "kind"), each_once(FAMILIES, OWN))


@every_kind
def test_a_new_student_scores_as_its_base_and_trains_a_part_of_its_own(name, kind, published):
    base, images = published(name), pictures()
    before, whole = base(images, PROMPTS), fingerprint(base.network)
    made = student(base, kind)
    assert (made.name, made.space) == (f"{name}-na", "pixels")
    for predicted in (made.predict(images, PROMPTS, MIXED), made(images, PROMPTS, MIXED)):
        assert predicted.dtype == torch.float32
        torch.testing.assert_close(predicted, before, rtol=1e-5, atol=1e-5)
    shake(made).predict(images, PROMPTS, MIXED).sum().backward()
    trainable = made.trainable()
    assert {n for n, p in made.network.named_parameters() if p.requires_grad} == set(trainable)
    assert {n for n, p in made.network.named_parameters() if p.grad is not None} == set(trainable)
    # Texts are encoded once for all levels.
    assert not [
        n
        for n in trainable
        if re.search(r"text_model|text_projection|token_embedding|logit_scale", n)
    ]
    assert torch.equal(base(images, PROMPTS), before)
    assert fingerprint(base.network) == whole
    counts = [
        sum(p.numel() for p in some) for some in (base.network.parameters(), trainable.values())
    ]
    # weights are in memory once
    assert sum(p.numel() for p in made.network.parameters()) == sum(counts)
    shaken = made(images, PROMPTS, MIXED)
    torch.testing.assert_close(
        copy.deepcopy(made)(images, PROMPTS, MIXED), shaken, rtol=1e-5, atol=1e-5
    )
    assert not any(module.training for module in made.network.train().modules())
    assert all(p.grad is None and not p.requires_grad for p in base.network.parameters())


@every_kind
def test_neither_batches_nor_a_save_change_scores(name, kind, published, tmp_path):
    made = shake(student(published(name), kind, rank=2, batch_size=2))
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

    folder = tmp_path / "deep" / "saved"
    made.save_pretrained(folder, {"steps": 3})
    loaded = NoiseAware.from_pretrained(folder, base=published(name))
    torch.testing.assert_close(loaded(images, PROMPTS, levels), together, rtol=1e-5, atol=1e-5)
    assert (loaded.kind, loaded.rank, loaded.levels) == (kind, 2, made.levels)
    header = json.loads((folder / "adapter.json").read_text())
    assert (header["info"], header["kind"]) == ({"steps": 3}, kind)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]


@pytest.mark.parametrize(("name", "kind"), each_once(["imagereward", "pickscore"], OWN))
def test_a_level_dependent_target_is_learned(name, kind, published):
    base, images = published(name), pictures()
    clean = base(images, PROMPTS)
    made = student(base, kind)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    fit(made, clean * (1 - MIXED) + 0.3 * MIXED)
    changed = {
        name
        for name, value in made.network.state_dict().items()
        if not torch.equal(before[name], value)
    }
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
    for finished in (None, torch.zeros(6)):
        assert torch.equal(made(images, PROMPTS, finished), clean)


def test_the_level_is_told_by_itself_and_by_waves():
    features = fourier(torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(features[0], torch.tensor([0.0] * 5 + [1.0] * 4))
    assert features[1, :2].tolist() == pytest.approx([0.5, 1.0])  # the level, and sin(pi / 2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_level_matters_through_its_embedding_only(kind, published):
    images = pictures(2)
    for embedding in (True, False):
        made = shake(student(published("imagereward"), kind, level_embedding=embedding))
        low, high = (
            made.predict(images, PROMPTS[:2], torch.full((2,), level)) for level in (0.2, 0.8)
        )
        assert (low - high).abs().min() > 1e-3 if embedding else torch.equal(low, high)
        assert any("embedding" in name.split(".")[0] for name in made.trainable()) == embedding


def test_the_nearest_level_has_the_adapter(published):
    base, images = published("pickscore"), pictures()
    made = student(base, "per-level", levels=(0.9, 0.2, 0.5))
    assert made.levels == LEVELS
    assert [made.network.nearest(v) for v in (0.01, 0.34, 0.36, 0.69, 0.71, 1.0)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    with torch.no_grad():  # Only the adapter of 0.5 is other than the base.
        for name, parameter in made.trainable().items():
            if name.startswith("copies.1.") and "lora_B" in name:
                parameter += 0.1
    changed = (made(images, PROMPTS, MIXED) - base(images, PROMPTS)).abs() > 1e-3
    assert changed.tolist() == [False, False, True, False, False, True]


def test_stages_start_from_the_nearest_trained_level(published):
    made = student(published("pickscore"), "per-level")

    def part(i):
        return torch.cat(
            [p.flatten() for n, p in made.trainable().items() if n.startswith(f"copies.{i}.")]
        ).detach()

    @torch.no_grad()
    def train(i):
        for name, parameter in made.trainable().items():
            parameter += 0.1 * name.startswith(f"copies.{i}.")

    new = [part(i) for i in range(3)]
    made.begin_stage(0.2)
    assert all(torch.equal(part(i), new[i]) for i in range(3))  # nothing to start from
    train(0)
    first = part(0)
    made.begin_stage(0.5)
    assert torch.equal(part(1), first)
    assert torch.equal(part(2), new[2])
    train(1)
    made.begin_stage(0.5)  # after a restart within the stage: what was trained stays
    made.begin_stage(0.9)
    assert torch.equal(part(2), first + 0.1)
    assert torch.equal(part(0), first)


def test_autocast_keeps_the_shift_of_scores_fine(published):
    made = shake(student(published("pickscore"), "lora"), 0.01)
    with torch.no_grad():
        score = made.network.embedding.score  # type: ignore[union-attr]
        score.weight.zero_()
        score.bias.copy_(torch.tensor([-30.0, 20.003]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = made.predict(pictures(), PROMPTS, MIXED)
    torch.testing.assert_close(predicted, torch.full((6,), 20.003), rtol=0, atol=1e-4)


def test_seeds_fix_the_start_and_leave_torch_alone(published):
    before = torch.random.get_rng_state()
    made = [student(published("clip"), "lora", seed=seed).trainable() for seed in (1, 1, 2)]
    values = [torch.cat([p.flatten() for p in one.values()]) for one in made]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("level", [float("nan"), 999.0, torch.tensor([0.5, 2.0]), torch.zeros(3)])
def test_levels_that_are_none_are_refused(level, published):
    with pytest.raises(ValueError, match=r"2 noise levels in \[0, 1\]"):
        student(published("clip"), "lora")(pictures(2), PROMPTS[:2], level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lovely"}, "lora, dora, per-level, full, got 'lovely'"),
        *(
            ({"kind": kind, "levels": (0.5,)}, f"none; got .* for {kind}")
            for kind in ("lora", "dora")
        ),
        *(
            ({"kind": "per-level", "levels": levels}, r"in \(0, 1\]")
            for levels in ((), (0.5, 0.5), (0.0, 0.5))
        ),
        *(({name: 0}, r"at least 1, got") for name in ("rank", "batch_size")),
    ],
)
def test_settings_that_do_not_fit(options, message, published):
    with pytest.raises(ValueError, match=message):
        NoiseAware(published("clip"), **options)


def test_bases_that_do_not_fit(published):
    class Odd(Scorer):
        name, adapted, trained, level_sites = "odd", "nothing", "nothing", "nothing"

    base = published("clip")
    with pytest.raises(ValueError, match="'brightness'"):
        NoiseAware(Brightness())  # type: ignore[arg-type]
    for kind in ("lora", "full"):
        with pytest.raises(ValueError, match=r"odd .*'nothing'"):
            NoiseAware(Odd(base.network, base.preprocess), kind)
    with pytest.raises(ValueError, match="batch-first"):
        ProjectedAttention(torch.nn.MultiheadAttention(32, 4))


class Judge(Brightness):
    """A black box: it tells a score and the tokens that it took, and has no network."""

    name, tokens, example = "judge", 9, "anything"

    def __call__(self, images, prompts, level=None):
        assert level is None
        self.tokens_taken = [7] * len(images)
        return super().__call__(images, prompts)


@pytest.mark.parametrize("kind", OWN)
def test_a_network_of_another_reward_is_trained_for_a_black_box(kind, published, tmp_path):
    scorer, judge, images = published("pickscore"), Judge(), pictures()
    before, targets = scorer(images, PROMPTS), judge(images, PROMPTS)
    made = student(judge, kind, scorer=scorer, spec="mine.py:Judge")
    assert (made.name, made.base, made.tokens, made.scores_estimates_apart) == (
        "judge-na",
        judge,
        9,
        True,
    )
    torch.testing.assert_close(made(images, PROMPTS, MIXED), before, rtol=1e-5, atol=1e-5)
    made.match(before.numpy(), targets.numpy())
    in_units = made(images, PROMPTS, MIXED)
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(in_units), statistic(targets), rtol=1e-3, atol=0)
    assert torch.equal(in_units.argsort(), before.argsort())
    fit(made, targets)
    assert torch.equal(scorer(images, PROMPTS), before)

    made.base_below = 0.2
    scores = made(images, PROMPTS, MIXED)
    assert scores[1] == targets[1]
    assert made.tokens_taken == [0, 7, 0, 0, 0, 0]
    assert torch.equal(made(images, PROMPTS), targets)
    assert torch.equal(torch.as_tensor(made.differentiable(images, PROMPTS)), targets)
    mixed = torch.as_tensor(made.differentiable(images, PROMPTS, MIXED))
    assert (mixed == targets).tolist() == [False, True, False, False, False, False]
    assert made.flops > scorer.flops
    made.save_pretrained(tmp_path)
    again = NoiseAware.from_pretrained(tmp_path, base=judge, scorer=scorer)
    torch.testing.assert_close(again(images, PROMPTS, MIXED), scores, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="checkpoint of 'pickscore'"):
        NoiseAware.from_pretrained(tmp_path, base=judge, scorer=published("imagereward"))


# --- files ----------------------------------------------------------------------------------------


def rewrite(folder, **changes):
    header = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**header, **changes}))


@pytest.fixture
def saved(published, tmp_path):
    """The folder of a student of CLIP."""
    shake(student(published("clip"), "lora")).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_make_reward_loads_folders_on_a_base_that_the_user_names(tmp_path):
    base = load("pickscore", tmp_path)
    made = shake(student(base, "lora", level_embedding=False, spec=f"pickscore:{tmp_path}"))
    made.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="a file names them"):
        make_reward(f"noise-aware:{tmp_path / 'saved'}")
    named = f"noise-aware:{tmp_path / 'saved'} on pickscore:{tmp_path}"
    loaded = make_reward(named, dtype=torch.float32)
    expected = made(pictures(), PROMPTS, MIXED)
    torch.testing.assert_close(loaded(pictures(), PROMPTS, MIXED), expected, rtol=1e-6, atol=1e-6)
    half = make_reward(named, dtype=torch.bfloat16)  # the same checkpoint
    assert (half.base.dtype, half(pictures(), PROMPTS, MIXED).dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    assert all(p.dtype == torch.float32 for p in half.trainable().values())
    with pytest.raises(ValueError, match="folder"):
        make_reward("noise-aware:/nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "head", "space": "features"}, "a head on 'features'; ttsnap no longer has heads"),
        ({"kind": "lovely"}, "unknown kind 'lovely'; known are lora, dora"),
        ({"format": 2}, "not of format 1"),
        *(
            ({name: x}, f"no NoiseAware wrote: {name}")
            for name, x in (("rank", "4"), ("rank", -1), ("base_below", 3.0))
        ),
        ({"level_embedding": 1}, "no NoiseAware wrote: level_embedding"),
        ({"fingerprint": None}, "another checkpoint"),
        ({"rank": 3}, "another model"),
        # Without a base that the user gives: a file chooses no code, no address and no weights.
        *(
            ({"base": base}, "is no reward's name; load it .*on REWARD")
            for base in ("mine.py:Judge", "http://localhost:1")
        ),
        *(
            ({"base": base}, "no reward's name")
            for base in ("{}/mine.py:f", "os:getcwd", "noise-aware:x", None, 3)
        ),
        ({"base": "imagereward:/nowhere"}, "because a file names"),
        (
            {"base": "brightness", "network": "mine.py:f"},
            "network 'mine.py:f', which is no reward's name",
        ),
        (
            {"base": "brightness", "network": "clip:x"},
            "network 'clip:x', whose weights are not loaded .* scorer=",
        ),
        (
            {"base": "brightness", "network": "noise-aware"},
            "which is no reward's name; load it with scorer=",
        ),
        ({"base": "brightness"}, "a base with weights, got 'brightness'"),
        (
            {"base": "brightness", "network": "colourfulness"},
            "a base with weights, got 'colourfulness'",
        ),
    ],
)
def test_headers_that_no_save_wrote_are_refused(changes, message, saved, published):
    ran = saved / "ran"
    (saved / "mine.py").write_text(f"open({str(ran)!r}, 'w')\ndef f(images, prompts): ...\n")
    rewrite(saved, **{k: v.format(saved) if isinstance(v, str) else v for k, v in changes.items()})
    with pytest.raises(ValueError, match=message):
        NoiseAware.from_pretrained(saved, base=None if "base" in changes else published("clip"))
    assert not ran.exists()


def test_damaged_and_foreign_folders_are_refused(published, saved):
    base, tensors = published("clip"), saved / "adapter.safetensors"

    def refused(message, vouched=True):
        if vouched and tensors.exists():
            rewrite(saved, sha256=sha256(tensors))
        with pytest.raises(ValueError, match=message):
            NoiseAware.from_pretrained(saved, base=base)

    whole = tensors.read_bytes()
    state = load_tensors(whole)
    name = next(iter(state))
    tensors.write_bytes(whole[: len(whole) // 2])
    refused("not the one that adapter.json describes", vouched=False)
    refused("cannot be read as weights")
    torch.save({"a": Path("x")}, tensors)  # a pickle that would run code
    refused("cannot be read as weights")
    one = torch.zeros(1)
    for wrong in (
        {**state, "more": one},
        {**state, name: one},
        {n: state[n] for n in list(state)[1:]},
    ):
        save_file(wrong, tensors)
        refused(f"1 tensors differ, such as (more|{re.escape(name)})")
    tensors.unlink()
    refused("no adapter.safetensors")
    (saved / "adapter.json").unlink()
    refused("adapter.json cannot be read")


def test_a_failed_save_leaves_what_was_there(published, saved):
    made = shake(student(published("clip"), "lora"), 0.2)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    for folder, info in (
        (saved, {"where": type("Path", (), {})()}),
        (saved / "adapter.json" / "below", {}),
    ):
        with pytest.raises(ValueError, match="cannot save to"):
            made.save_pretrained(folder, info)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
