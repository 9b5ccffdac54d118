"""The preference LoRA of the embedded model: its loss, its pairs, its training and files, and the --lora option."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from train_worlds.commands import main
from train_worlds.preference import Lora, Recipe, Validation, preference_loss, squared_errors
from train_worlds.preference_pairs import PreferenceData, make_pairs, split

from tests.shallow import shallow
from ttsnap.cli import main as ttsnap
from ttsnap.files.settings import to_json
from ttsnap.pipelines.families.stable_diffusion_3 import SearchStableDiffusion3Pipeline
from ttsnap.pipelines.lora import load_lora, parse_lora
from ttsnap.results.record import read_record
from ttsnap.scenes import is_held_out, sample_prompts, weights_path

pytestmark = pytest.mark.usefixtures("shallow_model")
CALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "max_sequence_length": 1}
PROMPT = "two red circles and a blue square"


SMALL = Recipe(
    data=PreferenceData(prompts=3, seeds=2, margin=0.0, validation=2),
    lora=Lora(rank=2, alpha=4, modules=("to_q", "to_v")), lr=0.02, batch=2, steps=4, warmup=1,
    validation=Validation(every=2, seeds=1, steps=2, patience=3),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA of a training of four steps."""
    folder = tmp_path_factory.mktemp("preference")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(to_json(SMALL)))
    with shallow():
        main(["preference", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "lora")])
    return folder / "lora"


@pytest.fixture
def stock() -> Any:
    loaded: Any = DiffusionPipeline.from_pretrained(weights_path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def picture(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found: torch.Tensor = pipe(PROMPT, generator=generator, output_type="pt", **CALL).images
    return found


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    tuned, frozen = (torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    lead = ((tuned[0] - frozen[0]) - (tuned[1] - frozen[1])).tolist()
    expected = np.mean([math.log(1 + math.exp(3.0 * one)) for one in lead])  # eq. 14, beta = 3
    assert preference_loss(tuned, frozen, 3.0).item() == pytest.approx(expected, rel=1e-12)
    assert preference_loss(frozen, frozen, 3.0).item() == pytest.approx(math.log(2), rel=1e-12)


def test_the_error_of_a_network_is_that_of_its_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 3, 2, 2), (4, 3, 2, 2), (4,))
    latents, noise, sigma = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    text = torch.zeros(4, 1, 1), torch.zeros(4, 1)
    found = squared_errors(lambda x, *_: types.SimpleNamespace(sample=0.9 * x), latents, sigma, noise, text)
    level = sigma.view(-1, 1, 1, 1)
    x, v = (1 - level) * latents + level * noise, noise - latents
    torch.testing.assert_close(found, ((0.9 * x - v) ** 2).mean((2, 3, 4)))


def test_no_caption_of_the_benchmarks_is_trained_on() -> None:
    training, validation = split(60, 18, 0)
    assert len({*training, *validation}) == 60 + 18
    assert not any(map(is_held_out, [*training, *validation]))
    assert not set(sample_prompts(60, 0)) & {*training, *validation}


def test_pairs_are_the_best_and_the_worst() -> None:
    latents = torch.arange(6.0).view(2, 3, 1, 1, 1)
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.50, 0.51, 0.52]])
    pairs = make_pairs(["clear", "close"], latents, scores, 0.1)
    assert pairs.prompts == ("clear",)
    assert pairs.latents.flatten().tolist() == [1, 0]
    assert pairs.scores.flatten().tolist() == pytest.approx([0.9, 0.1])


def test_training_writes_what_stock_diffusers_loads(trained: Path, stock: Any) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [h["step"] for h in metrics["history"]] == [0, 2, 4]
    assert all(0 <= h[name] <= 1 for h in metrics["history"] for name in ("scenes-learned", "scenes", "scenes-strict"))
    stored = torch.load(trained / "pairs.pt", weights_only=True)
    assert (stored["scores"][0] > stored["scores"][1]).all()
    before = picture(stock)
    stock.load_lora_weights(trained)
    tuner = next(m for m in stock.transformer.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    assert set(tuner.scaling.values()) == {2.0}  # alpha / rank came along
    assert (picture(stock) - before).abs().max() > 1e-3
    stock.disable_lora()
    torch.testing.assert_close(picture(stock), before)


# --- the command line ---------------------------------------------------------------------------------------------


def test_reading_the_option(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()  # a folder that ends in a number
    for where in ("lora", "someone/a-style", "C:\\lora", f"{tmp_path}/run:2"):
        assert parse_lora(where) == (where, 1.0)
        assert parse_lora(f"{where}:-0.5") == (where, -0.5)
    for wrong in ("", " ", "lora:nan", "lora:inf"):
        with pytest.raises(ValueError, match="cannot read --lora"):
            parse_lora(wrong)


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    pipe = SearchStableDiffusion3Pipeline.from_pretrained(weights_path())
    part = "transformer.transformer_blocks.0.attn.to_q.lora"
    sizes = {f"{part}_A.weight": torch.zeros(2, 7), f"{part}_B.weight": torch.zeros(7, 2)}
    for name, weights in (("other", {"unet.a.to_q.lora_A.weight": torch.zeros(2, 3)}), ("size", sizes), ("torn", {})):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "pytorch_lora_weights.safetensors")
    (tmp_path / "torn" / "pytorch_lora_weights.safetensors").write_bytes(b"torn")
    for where, message in (
        *((where, "no such folder") for where in ("./nowhere", "nowhere")),
        (tmp_path, "no .safetensors file"),
        (weights_path() / "transformer", "Invalid LoRA checkpoint"),
        (tmp_path / "other", "nothing in it belongs to a .*another family"),
        (tmp_path / "size", "size mismatch"),
        (tmp_path / "torn", "cannot load it into a"),
    ):
        with pytest.raises(ValueError, match=message):
            load_lora(pipe, str(where))
        assert not any(pipe.get_list_adapters().values())
    with pytest.raises(ValueError, match="SimpleNamespace"):
        load_lora(types.SimpleNamespace(), str(tmp_path))


def test_generate_record_and_replay(trained: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    option, quick = f"{trained}:0.5", ["--steps", "4", "--device", "cpu"]
    assert ttsnap(["generate", PROMPT, "--budget", "8nfe", "--lora", option, "--out", "with", *quick]) == 0
    assert f"pipe.load_lora_weights('{trained}'" in capsys.readouterr().out
    image = next(Path("with").glob("*seed*.png"))
    settings = json.loads(Path("with/trace.json").read_text())["settings"]
    assert read_record(image).lora == settings["lora"] == option
    assert ttsnap(["replay", str(image)]) == 2  # a picture does not decide what is loaded
    assert f"the LoRA '{option}'" in capsys.readouterr().err
    assert ttsnap(["replay", str(image), "--trust"]) == 0
    assert largest(image, image.parent / "replays" / image.name) <= 1
    assert ttsnap(["replay", str(image), "--lora", f"{trained}:-3", "--out", "other.png"]) == 0
    assert largest(image, Path("other.png")) > 1
    record = ["record", PROMPT, "--seeds", "1", "--out", "recording", *quick]
    assert ttsnap([*record, "--lora", option]) == 0
    assert ttsnap(record) == 2
    assert "lora" in capsys.readouterr().err


def largest(one: Path, other: Path) -> int:
    return int(np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)).max())
