"""LoRAs that strangers made: what their metadata asks for is held to what their tensors are, before
peft reads it. And the option --lora: what it reads, what it refuses, and where it is noted.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from ttsnap.cli import main
from ttsnap.options.model import parse_lora
from ttsnap.pipelines.lora import HEAD_BYTES, load_lora
from ttsnap.results.record import read_record
from ttsnap.scenes import weights_path

from .tiny import save_lora, shared

MODULES = ["to_q", "to_k"]
FOREVER, FIRST = "([a-z_.0-9]+)+!", "transformer_blocks.0.attn.to_q"


@pytest.fixture
def pipe():
    made = shared("sd3")
    yield made
    made.unload_lora_weights()  # it is shared by all tests


@pytest.fixture
def tensors(tmp_path_factory):
    folder = save_lora(shared("sd3"), tmp_path_factory.mktemp("made"), rank=2)
    made = load_file(folder / "pytorch_lora_weights.safetensors")
    return {
        name: tensor
        for name, tensor in made.items()
        if any(f".{module}." in name for module in MODULES)
    }


def written(folder, tensors, changes):
    """A LoRA as diffusers writes it, its configuration in the metadata, with these changes."""
    config = (
        LoraConfig(r=2, lora_alpha=4, target_modules=MODULES).to_dict()
        | {"target_modules": MODULES}
        | changes
    )
    about = json.dumps(
        {f"transformer.{name}": value for name, value in config.items()}, default=list
    )
    save_file(tensors, folder / "x.safetensors", {"format": "pt", "lora_adapter_metadata": about})
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank_pattern": {f"^{FIRST}": 1}, "alpha_pattern": {FIRST: 8}},
        {"target_modules": r".*\.attn\.(to_q|to_k)$"},
        {"target_modules": "all-linear"},
    ],
)
def test_what_trainers_write_is_loaded(pipe, tensors, tmp_path, changes):
    for name in tensors if "rank_pattern" in changes else ():
        if "0.attn.to_q" in name:
            tensors[name] = (
                tensors[name][:1] if "lora_A" in name else tensors[name][:, :1]
            ).contiguous()
    load_lora(pipe, written(tmp_path, tensors, changes))
    config = pipe.transformer.peft_config["lora"]
    assert (config.r, config.lora_alpha) == (2, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": FOREVER},
        {"target_modules": ".*.*.*.*.*"},
        {"exclude_modules": FOREVER},
        {"target_modules": "(t|t)(r|r)(a|a)(n|n)(s|s)(f|f)(o|o)(r|r)(m|m)(e|e)(r|r)"},
        {"layers_pattern": FOREVER, "layers_to_transform": [0]},
        {"rank_pattern": {FOREVER: 2}},
        {"alpha_pattern": {FOREVER: 2}},
        {"rank_pattern": {"to_q": 10**8}},
        {"r": 10**9},
        {"r": -1},
        {"r": "2"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e300},
        {"alpha_pattern": {"to_q": float("inf")}},
    ],
)
def test_a_configuration_that_would_take_for_ever_is_refused(pipe, tensors, tmp_path, changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"says transformer.{name} = ") as caught:
        load_lora(pipe, written(tmp_path, tensors, changes))
    assert "\n" not in str(caught.value)
    assert "lora" not in getattr(pipe.transformer, "peft_config", {})


def test_a_head_of_megabytes_is_not_parsed(pipe, tensors, tmp_path):
    save_file(
        tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": "[]," * (HEAD_BYTES // 3)}
    )
    for where in (tmp_path, tmp_path / "x.safetensors"):
        with pytest.raises(ValueError, match=r"x.safetensors has [\d,]+ bytes .* 8,388,608"):
            load_lora(pipe, str(where))


def test_reading_the_option(tmp_path):
    (tmp_path / "run:2").mkdir()  # a folder that ends in a number
    for where in ("lora", "someone/a-style", "C:\\lora", f"{tmp_path}/run:2"):
        assert parse_lora(where) == (where, 1.0)
        assert parse_lora(f"{where}:-0.5") == (where, -0.5)
    for wrong in ("", " ", "lora:nan", "lora:inf"):
        with pytest.raises(ValueError, match="cannot read --lora"):
            parse_lora(wrong)


def test_what_is_no_lora_is_refused(pipe, tmp_path):
    part = "transformer.transformer_blocks.0.attn.to_q.lora"
    sizes = {f"{part}_A.weight": torch.zeros(2, 7), f"{part}_B.weight": torch.zeros(7, 2)}
    for name, weights in (
        ("other", {"unet.a.to_q.lora_A.weight": torch.zeros(2, 3)}),
        ("size", sizes),
        ("torn", {}),
    ):
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
        load_lora(SimpleNamespace(), str(tmp_path))


@pytest.mark.usefixtures("shallow_model")
def test_generate_record_and_replay(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = save_lora(DiffusionPipeline.from_pretrained(weights_path()), tmp_path / "lora")
    option, quick = f"{lora}:0.5", ["--steps", "4", "--device", "cpu"]
    prompt = "two red circles and a blue square"
    assert (
        main(["generate", prompt, "--budget", "8nfe", "--lora", option, "--out", "with", *quick])
        == 0
    )
    assert f"pipe.load_lora_weights('{lora}'" in capsys.readouterr().out
    image = next(Path("with").glob("*seed*.png"))
    settings = json.loads(Path("with/trace.json").read_text())["settings"]
    assert read_record(image).lora == settings["lora"] == option
    assert main(["replay", str(image)]) == 2  # a picture does not decide what is loaded
    assert f"the lora '{option}'" in capsys.readouterr().err
    assert main(["replay", str(image), "--trust"]) == 0
    assert largest(image, image.parent / "replays" / image.name) <= 1
    assert main(["replay", str(image), "--lora", f"{lora}:-3", "--out", "other"]) == 0
    assert largest(image, Path("other", image.name)) > 1
    record = ["record", prompt, "--seeds", "1", "--out", "recording", *quick]
    assert main([*record, "--lora", option]) == 0
    assert main(record) == 2
    assert "lora" in capsys.readouterr().err


def largest(one, other):
    return int(np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)).max())
