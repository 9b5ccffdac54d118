"""`ttsnap check --dry-run`: a model on paper is what it is with its weights."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline

from tests.pipelines.tiny import FAMILIES
from ttsnap.check.cost import evaluate
from ttsnap.check.dry_run import CARDS, GIB, Batch, Paper, lines, worked_out
from ttsnap.cli import main
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.on_paper import on_paper as made
from ttsnap.profiling.on_paper import Live
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare

PROMPT = Prompt("a red circle")


def configurations(pipe, folder):
    """The folder of a model without its weights and the words of its tokenizers."""
    pipe.save_pretrained(folder)
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.unlink()
        if file.name in ("tokenizer.json", "vocab.json"):
            file.unlink()
    return folder


def on_paper(stock, folder, call):
    """The model on paper. It gets the tokenizers of paper, so that texts are as long."""
    pipe, networks = made(configurations(stock, folder), torch.float32)
    stock.register_modules(
        **{name: part for name, part in pipe.components.items() if "tokenizer" in name}
    )
    if hasattr(pipe, "prompt_template_encode"):
        stock.prompt_template_encode = pipe.prompt_template_encode
    spec = EngineSpec(ModelOptions(str(folder)), ("brightness",), call=call)
    request = SearchRequest((PROMPT,), spec, "best-of-n", Budget.parse("4images"))
    return worked_out(pipe, networks, prepare(request, ModelDefaults()), "model")


def watched(network):
    """What each call of a network on the CPU will hold."""
    found, forward = list[int](), network.forward

    def watch(*args, **kwargs):
        with torch.no_grad(), Live("cpu") as live:
            made = forward(*args, **kwargs)
        found.append(live.peak)
        return made

    network.forward = watch
    return found


@pytest.mark.parametrize("name", [*FAMILIES, "no family"])
def test_a_model_takes_on_paper_what_it_takes_with_its_weights(name, tmp_path):
    family = FAMILIES.get(name, FAMILIES["sd15"])
    stock, call = family.build(), {**family.call, "num_inference_steps": 4}
    if name not in FAMILIES:
        stock = StableDiffusionPAGPipeline(**stock.components)
    paper = on_paper(stock, tmp_path, call)
    networks = {
        part: net for part, net in stock.components.items() if isinstance(net, torch.nn.Module)
    }
    assert paper.weights == {
        part: sum(p.nbytes for p in net.parameters()) for part, net in networks.items()
    }
    (network,) = paper.denoisers
    denoiser = upgrade(stock).denoiser(**call)
    # A network that leaves padding out takes less: on paper texts are as long as their mask.
    more = 10.0 if name == "lumina2" else 1.0
    nfe = denoiser.costs().nfe
    assert 0.99 * nfe <= paper.flops["an evaluation"] <= 1.01 * more * nfe
    assert paper.flops["a decode"] == denoiser.costs().decode
    denoiser.encode([PROMPT])
    peaks = watched(getattr(denoiser.pipe, network))
    evaluate(denoiser, 2)
    assert 0.9 * max(peaks) <= paper.row.first + paper.row.more <= 1.1 * more * max(peaks)


def test_a_card_holds_what_fits():
    row, decode = Batch(GIB, GIB // 2), Batch(2 * GIB, 2 * GIB)
    weights = {"transformer": 10 * GIB, "vae": GIB, "text_encoder": 8 * GIB}
    paper = Paper(
        "m",
        "bfloat16",
        8,
        8,
        None,
        4,
        2,
        weights,
        {},
        ("transformer",),
        GIB // 4,
        {"text_encoder": GIB},
        row,
        decode,
        {},
        "best-of-n",
    )
    assert [paper.on(gb).offload for gb in (2, 8, 16, 24)] == [None, "group", "model", "none"]
    rewarded = replace(paper, rewards={"imagereward": 6.0 * GIB})
    assert [rewarded.on(gb).offload for gb in (8, 16, 24)] == [None, "group", "model"]
    assert "| 16 | --offload model | 19 |" in re.sub(" +", " ", "\n".join(lines(paper)))
    assert [card.gb for card in paper.cards()] == list(CARDS)
    assert all(
        1 <= paper.on(gb).decodes <= paper.on(gb).rows <= 64 for gb in (8, 12, 16, 24, 48, 80)
    )


def test_the_command_needs_nothing_but_configurations(tmp_path, capsys):
    folder = configurations(FAMILIES["sdxl"].build(), tmp_path / "model")
    size = ["--steps", "4", "--height", "16", "--width", "24"]
    words = [
        "check",
        str(folder),
        "--dry-run",
        "--reward",
        "imagereward",
        *size,
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "24 x 16, bfloat16, 4 steps" in said
    assert "--reward imagereward --height 16 --width 24 --steps 4" in said
    assert "weights: imagereward" in said
    assert "--offload" not in said
    assert "--dry-run" not in said
    (folder / "unet" / "config.json").unlink()
    assert main(words) == 2


FAST = ("Krea2Pipeline", "LTX2Pipeline", "SkyReelsV2Pipeline")
"""Lists in model_index.json, statistics in buffers, and a video."""
ON_PAPER = """
AnimateDiffPAGPipeline AnimateDiffPipeline AnimateDiffSDXLPipeline AnyFlowPipeline
AuraFlowPipeline BriaFiboPipeline BriaPipeline ChromaPipeline CogVideoXPipeline
CogView3PlusPipeline DDIMPipeline DDPMPipeline DreamLiteMobilePipeline DreamLitePipeline EasyAnimatePipeline
FluxKontextPipeline FluxPipeline HunyuanDiTPAGPipeline HunyuanDiTPipeline HunyuanImagePipeline
HunyuanVideo15Pipeline HunyuanVideoPipeline IFPipeline Kandinsky3Pipeline Kandinsky5T2IPipeline
Kandinsky6TI2VAPipeline Krea2Pipeline LDMTextToImagePipeline LTX2ConditionPipeline
LTX2HDRPipeline LTX2InContextPipeline LTX2Pipeline
LTXI2VLongMultiPromptPipeline LTXPipeline LatentConsistencyModelPipeline LattePipeline
LongCatImagePipeline Lumina2Pipeline LuminaPipeline MotifVideoPipeline NucleusMoEImagePipeline
OvisImagePipeline PRXPipeline PRXPixelPipeline PixArtAlphaPipeline PixArtSigmaPAGPipeline PixArtSigmaPipeline
QwenImagePipeline SanaPAGPipeline SanaPipeline SanaVideoPipeline
SkyReelsV2DiffusionForcingPipeline SkyReelsV2Pipeline StableDiffusion3PAGPipeline
StableDiffusion3Pipeline StableDiffusionPAGPipeline StableDiffusionPipeline
StableDiffusionXLPAGPipeline StableDiffusionXLPipeline WanPipeline ZImageOmniPipeline
ZImagePipeline
"""
"""Classes whose small parts can be worked out from a prompt alone. Others are refused."""


def classes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        names = importlib.import_module("support").names()
    return [
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name in names
        if "Modular" not in name
    ]


@pytest.mark.parametrize("name", classes())
def test_the_configurations_of_every_class_are_worked_out_or_refused(name, tmp_path, capsys):
    parts = sys.modules["support_parts"]
    try:
        case = parts.stock(name)
        folder = configurations(case.pipe, tmp_path)
    except Exception as error:
        pytest.skip(f"its small parts are not made or not saved: {error}")
    call = {k: v for k, v in case.call.items() if isinstance(v, int | float | str)}
    given = {"steps": call.pop("num_inference_steps", 4)}
    given |= {side: call.pop(side) for side in ("height", "width") if side in call}
    typed = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words = ["check", str(folder), "--dry-run", "--dtype", "float32", *typed]
    with parts.small_pictures():
        status = main([*words, "--call", json.dumps(call)])
    said = capsys.readouterr()
    assert status == (0 if name in ON_PAPER.split() else 2), said.err
    assert "Traceback" not in said.err
