"""The noise-aware reward of signs: latents in, what an OCR would say out; its files, its price, and
its training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from train_worlds.commands import main as train_worlds

from ttsnap import Budget, SeedPruning, search
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.run import distill
from ttsnap.files.settings import build
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.header import Header
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.signs import SignsNoiseAware, letter_ids
from ttsnap.signs import sample_prompts

CALL = {**defaults("signs"), "num_inference_steps": 4}
PROMPTS = ['a red sign that says "HARBOR" in white', 'a blue sign that says "TEN"']


class Counting(Brightness):
    """In the place of the OCR: it counts the images that it is shown."""

    shown, flops = 0, 5e9

    def __call__(self, images, prompts, level=None):
        self.shown += len(images)
        return super().__call__(images, prompts)


@pytest.fixture(scope="module")
def pipe():
    return load("signs", dtype=torch.float32)


def latents(n=4):
    return torch.randn(n, 8, 8, 24, generator=torch.Generator().manual_seed(0))


def test_letters_and_what_is_no_sign():
    ids = letter_ids(['a red sign that says "AZ B"'.replace(" B", "B"), PROMPTS[1]])
    assert ids.tolist() == [[1, 26, 2, 0, 0, 0, 0, 0], [20, 5, 14, 0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="prompts of the form"):
        SignsNoiseAware(Brightness()).check(["two red circles"])


def test_rows_are_scored_alike_in_any_batch_by_word_and_level():
    made, x = SignsNoiseAware(Brightness(), seed=1), latents()
    with torch.no_grad():  # a new embedding of the level is zero
        for parameter in made.level.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    prompts, level = PROMPTS * 2, torch.tensor([0.9, 0.4, 0.2, 0.7])
    together = made.score_estimates(x, prompts, level)
    alone = torch.cat(
        [made.score_estimates(x[i : i + 1], prompts[i : i + 1], level[i : i + 1]) for i in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (made.score_estimates(x, prompts, 1 - level) - together).abs().min() > 1e-5
    assert (made.score_estimates(x, prompts[::-1], level) - together).abs().min() > 1e-5
    assert made.flops == pytest.approx(60e6, rel=0.1)
    images = torch.rand(4, 3, 32, 96)
    assert torch.equal(torch.as_tensor(made(images, prompts, level)), Brightness()(images, prompts))


def test_a_search_decodes_and_reads_finished_images_only(pipe, tmp_path):
    base = Counting()
    engine = pipe.engine(SignsNoiseAware(base), batch_size=8, **CALL)
    assert engine.price.estimates == "nothing"
    (found,) = search(
        PROMPTS[:1], SeedPruning(n=6, keep=(0.5,), steps=(2,)), engine, Budget(nfe=60)
    )
    cost = found.spent.cost
    assert (cost.nfe, cost.decodes, cost.reward_calls, cost.base_calls) == (6 * 3 + 3, 3, 6 + 3, 3)
    assert base.shown == 3
    assert found.best.image is not None
    assert found.best.reward == float(Brightness()(found.best.image[None], [""])[0])
    flops = engine.price.flops
    assert (flops.reward_calls, flops.reward_calls + flops.base_calls) == pytest.approx(
        (60e6, 5e9), rel=0.1
    )
    scored = 9 * flops.reward_calls + 3 * flops.base_calls
    assert found.spent.flops == pytest.approx(21 * flops.nfe + 3 * flops.decodes + scored)
    scores = np.zeros((1, 1, engine.grid.steps + 1, 1))
    recording = Recording(("a",), scores, engine.grid, ("r",), price=engine.price)
    told = json.loads(json.dumps(Header.of(recording).to_json()))
    assert Header.from_json(told, tmp_path).price == engine.price
    engine.calibrate()
    assert engine.price.seconds is not None


def test_it_is_distilled_saved_and_loaded(pipe, tmp_path):
    engine = pipe.engine("brightness", batch_size=16, keep=("latents",), **CALL)
    options = RecordOptions(4, steps=[1, 2], images=True, latents=True)
    record(engine, sample_prompts(4, 1), tmp_path / "r", options)
    config = build(
        DistillConfig,
        {
            "recordings": [str(tmp_path / "r")],
            "reward": "brightness",
            "steps_per_level": 6,
            "groups": 2,
            "group_size": 4,
            "lr": 3e-3,
            "warmup": 1,
            "validation": 0.25,
            "device": "cpu",
            "student": {"kind": "ttsnap.reward_models.signs:SignsNoiseAware", "space": "latents"},
        },
    )
    found = distill(config, tmp_path / "out")
    assert found.names == ("brightness", "signs-noise-aware")
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(losses[-4:]) < sum(losses[:4])
    folder = tmp_path / "out" / "reward"
    made = [SignsNoiseAware.from_pretrained(folder, base=Brightness()) for _ in range(2)]
    level = torch.full((4,), 0.5)
    made.append(SignsNoiseAware(Brightness()))
    scores, again, new = (reward.score_estimates(latents(), PROMPTS * 2, level) for reward in made)
    assert torch.equal(scores, again)
    assert not torch.equal(scores, new)
    with pytest.raises(ValueError, match="'sign-reader'"):
        make_reward(f"noise-aware:{folder}")
    (folder / "adapter.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not the one"):
        SignsNoiseAware.from_pretrained(folder)


def test_one_command_trains_the_reader_and_a_student_begins_with_it(tmp_path):
    (tmp_path / "mini.yaml").write_text("{pictures: 8, batch: 4, steps: 3, warmup: 1}")
    command = [
        "sign_reader",
        "--recipe",
        str(tmp_path / "mini.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    train_worlds(command)
    made = SignsNoiseAware(Brightness(), start=str(tmp_path / "out" / "reader.safetensors"))
    assert not torch.equal(
        made.reader.stem.weight, SignsNoiseAware(Brightness()).reader.stem.weight
    )
    before = (tmp_path / "out" / "reader.safetensors").read_bytes()
    train_worlds(command)
    assert (tmp_path / "out" / "reader.safetensors").read_bytes() == before


def test_the_packaged_one_knows_the_words_of_finished_latents(pipe):
    pytest.importorskip("rapidocr")
    made = make_reward("signs-noise-aware")
    assert (made.name, made.estimates) == ("signs-noise-aware", "latents")
    prompts = sample_prompts(8, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    x = pipe(prompts, generator=generators, output_type="latent", **defaults("signs")).images
    level = torch.full((8,), 0.26)
    own, others = (
        torch.as_tensor(made.score_estimates(x, p, level)) for p in (prompts, prompts[::-1])
    )
    assert (own > others).float().mean() > 0.8
