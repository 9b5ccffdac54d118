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
from train_worlds.model import build_transformer
from train_worlds.preference import (
    Lora,
    Recipe,
    Validation,
    add_lora,
    preference_loss,
    squared_errors,
)
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


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    tuned, frozen = (torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    beta = 3.0
    expected = 0.0
    for i in range(5):  # eq. 14, term by term
        inside = -beta * ((tuned[0, i] - frozen[0, i]) - (tuned[1, i] - frozen[1, i])).item()
        expected -= math.log(1 / (1 + math.exp(-inside))) / 5
    assert preference_loss(tuned, frozen, beta).item() == pytest.approx(expected, rel=1e-12)
    assert preference_loss(frozen, frozen, beta).item() == pytest.approx(math.log(2), rel=1e-12)


def test_its_gradient_in_closed_form() -> None:
    """Of a network v = a x, frozen at a = 1: d loss / d a = -beta sigmoid(-beta lead) d lead / d a, mean over pairs."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    sigma = torch.rand(4, generator=generator, dtype=torch.float64)
    text = torch.zeros(4, 1, 1), torch.zeros(4, 1)

    def network(a: Any) -> Any:
        return lambda x, tokens, pooled, t: types.SimpleNamespace(sample=a * x)

    a, beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True), 2.0
    errors = [squared_errors(network(value), latents, sigma, noise, text) for value in (a, 1.0)]
    preference_loss(*errors, beta).backward()
    level = sigma.view(-1, 1, 1, 1)
    x, v = (1 - level) * latents + level * noise, noise - latents
    per_pair = []
    for i in range(4):
        lead = sum(sign * (((x - v) ** 2)[k, i].mean() - ((0.9 * x - v) ** 2)[k, i].mean())
                   for k, sign in enumerate((1, -1)))  # fmt: skip
        slope = sum(-sign * (2 * x * (0.9 * x - v))[k, i].mean() for k, sign in enumerate((1, -1)))
        per_pair.append(-beta / (1 + math.exp(beta * lead)) * slope)
    assert a.grad is not None
    assert a.grad.item() == pytest.approx(float(np.mean(per_pair)), rel=1e-10)


def test_a_fresh_adapter_changes_nothing_and_alone_trains() -> None:
    torch.manual_seed(0)
    size = {"latent_size": 4, "latent_channels": 2, "layers": 2, "heads": 1, "head_dim": 8}
    net = build_transformer(**size, text_dim=6).double()
    weights = add_lora(net, Lora(rank=2, alpha=2, modules=("to_q", "to_v")))
    assert weights
    given = torch.randn(2, 3, 2, 4, 4), torch.rand(3), torch.randn(3, 2, 4, 4)
    latents, sigma, noise = (part.double() for part in given)
    text = torch.randn(3, 5, 6).double(), torch.randn(3, 6).double()
    net.disable_adapters()
    with torch.no_grad():
        frozen = squared_errors(net, latents, sigma, noise, text)
    net.enable_adapters()
    loss = preference_loss(squared_errors(net, latents, sigma, noise, text), frozen, 1000.0)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)
    assert not any(p.grad is not None for name, p in net.named_parameters() if "lora" not in name)


# --- the pairs ----------------------------------------------------------------------------------------------------


def test_no_caption_of_the_benchmarks_is_trained_on() -> None:
    training, validation = split(60, 18, 0)
    assert len(training) == 60
    assert len(validation) == 18
    assert not set(training) & set(validation)
    assert not any(map(is_held_out, [*training, *validation]))
    assert not set(sample_prompts(60, 0)) & {*training, *validation}


def test_pairs_are_the_best_and_the_worst() -> None:
    latents = torch.arange(6.0).view(2, 3, 1, 1, 1)
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.50, 0.51, 0.52]])
    pairs = make_pairs(["clear", "close"], latents, scores, 0.1)
    assert pairs.prompts == ("clear",)
    assert pairs.latents.flatten().tolist() == [1, 0]
    assert pairs.scores.flatten().tolist() == pytest.approx([0.9, 0.1])
    with pytest.raises(ValueError, match="no prompt has two pictures"):
        make_pairs(["clear", "close"], latents, scores, 2.0)


# --- training -----------------------------------------------------------------------------------------------------


def test_what_training_writes(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["reward"] == "scenes-learned"
    assert [h["step"] for h in metrics["history"]] == [0, 2, 4]
    assert all(0 <= h[name] <= 1 for h in metrics["history"] for name in ("scenes-learned", "scenes", "scenes-strict"))
    stored = torch.load(trained / "pairs.pt", weights_only=True)
    assert not any(map(is_held_out, stored["prompts"]))
    assert (stored["scores"][0] > stored["scores"][1]).all()


def test_stock_diffusers_loads_it(trained: Path, stock: Any) -> None:
    before = picture(stock)
    stock.load_lora_weights(trained)
    tuner = next(m for m in stock.transformer.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    assert set(tuner.scaling.values()) == {2.0}  # alpha / rank came along
    assert (picture(stock) - before).abs().max() > 1e-3
    stock.disable_lora()
    torch.testing.assert_close(picture(stock), before)


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "scale"),
    [
        ("lora", "lora", 1.0),
        ("lora:0.5", "lora", 0.5),
        ("someone/a-style:-1", "someone/a-style", -1.0),
        ("C:\\lora", "C:\\lora", 1.0),
        ("C:\\lora:2", "C:\\lora", 2.0),
    ],
)
def test_reading_the_option(text: str, where: str, scale: float) -> None:
    assert parse_lora(text) == (where, scale)


@pytest.mark.parametrize("text", ["", " ", "lora:nan", "lora:inf"])
def test_options_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read --lora"):
        parse_lora(text)


def test_a_folder_that_ends_in_a_number(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert parse_lora(str(tmp_path / "run:2")) == (str(tmp_path / "run:2"), 1.0)
    assert parse_lora(str(tmp_path / "run:2:0.5")) == (str(tmp_path / "run:2"), 0.5)


@pytest.fixture(scope="module")
def search_pipe() -> Any:
    loaded = SearchStableDiffusion3Pipeline.from_pretrained(weights_path())
    return loaded


def test_what_is_no_lora_is_refused(search_pipe: Any, tmp_path: Path) -> None:
    def refused(where: Path | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_lora(search_pipe, str(where))
        assert not any(search_pipe.get_list_adapters().values())

    refused("./nowhere", "there is no such folder")
    refused("nowhere", "there is no such folder")
    refused(tmp_path, "there is no .safetensors file")
    refused(weights_path() / "transformer", "cannot load it into a .*Invalid LoRA checkpoint")
    for name, weights, message in (
        ("other", {"unet.a.to_q.lora_A.weight": torch.zeros(2, 3)}, "nothing in it belongs to a .*another family"),
        ("size", {f"transformer.transformer_blocks.0.attn.to_q.lora_{k}.weight": torch.zeros(*s)
                  for k, s in (("A", (2, 7)), ("B", (7, 2)))}, "cannot load it into a .*size mismatch"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "pytorch_lora_weights.safetensors")
        refused(tmp_path / name, message)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "pytorch_lora_weights.safetensors").write_bytes(b"torn")
    refused(tmp_path / "torn", "cannot load it into a")
    with pytest.raises(ValueError, match="diffusers loads no LoRA into a SimpleNamespace"):
        load_lora(types.SimpleNamespace(), str(tmp_path))


def test_generate_record_and_replay_with_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--steps", "4", "--device", "cpu"]
    option = f"{trained}:0.5"
    assert ttsnap(["generate", PROMPT, "--budget", "8nfe", "--lora", option, "--out", "with", *quick]) == 0
    assert f"pipe.load_lora_weights('{trained}'" in capsys.readouterr().out
    image = next(Path("with").glob("*seed*.png"))
    assert read_record(image).lora == option
    assert json.loads(Path("with/trace.json").read_text())["settings"]["lora"] == option
    assert ttsnap(["replay", str(image)]) == 2  # a picture does not decide what is loaded
    assert f"asks for the LoRA '{option}'" in capsys.readouterr().err
    assert ttsnap(["replay", str(image), "--trust"]) == 0
    assert largest(image, image.parent / "replays" / image.name) <= 1
    assert ttsnap(["replay", str(image), "--lora", f"{trained}:-3", "--out", "other.png"]) == 0
    assert largest(image, Path("other.png")) > 1

    record = ["record", PROMPT, "--seeds", "1", "--out", "recording", *quick]
    assert ttsnap([*record, "--lora", option]) == 0
    assert ttsnap(record) == 2
    assert "lora" in capsys.readouterr().err
    assert ttsnap(["generate", PROMPT, "--lora", str(tmp_path / "with")]) == 2
    assert "not a LoRA" in capsys.readouterr().err


def largest(one: Path, other: Path) -> int:
    return int(np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)).max())
