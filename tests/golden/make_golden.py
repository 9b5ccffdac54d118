"""Make golden.json: scores of tiny networks by the original packages. Run once, in an environment
of its own:

    python3.11 -m venv golden
    golden/bin/pip install torch torchvision open_clip_torch "transformers==4.46.3" ftfy clint
    golden/bin/pip install --no-deps timm==0.6.13 image-reward==1.5 hpsv2==1.2.0 \
        simple-aesthetics-predictor==0.1.2 torchmetrics==1.9.0 lightning-utilities
    golden/bin/python tests/golden/make_golden.py

What had to be bent, since the packages no longer run as they are: fairscale (image-reward imports
its activation checkpointing, and does not use it here), turtle (hpsv2 imports it by accident) and
clint are replaced by empty modules where they are missing; hpsv2's wheel lacks its vocabulary,
which open_clip's wheel has; the sizes that ImageReward fixes in code are replaced by tiny ones. The
scoring code itself runs unchanged. PickScore has no package: its model card's formula is written
out below, on transformers 4.

Each package scores small pictures by a network that reads 32 x 32, and larger ones, whose crops
show which library made them, by one that reads 224 x 224. Where it takes pictures with an alpha
channel, it scores such, too: torchmetrics takes tensors of three channels, and hpsv2 fails on four.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny

Pairs = Sequence[tuple[Image.Image, str]]


def stub(name, **attributes):
    """An empty module in place of one that cannot be installed and is not used."""
    module = types.ModuleType(name)
    vars(module).update(attributes, __path__=[])
    sys.modules[name] = module


def package_without_init(name):
    """Make submodules importable without running a package's __init__, which imports much more."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    stub(name)
    sys.modules[name].__path__ = list(spec.submodule_search_locations or [])


def clip(folder, side, pairs):
    """torchmetrics' clip_score."""
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPProcessor

    tiny.write_clip(folder, side=side)
    network = CLIPModel(CLIPModel.config_class.from_pretrained(folder))
    shapes = tiny.fill(network)
    processor = CLIPProcessor.from_pretrained(folder)
    whole = [
        (torch.from_numpy(np.array(picture)).permute(2, 0, 1), prompt) for picture, prompt in pairs
    ]
    scores = [
        clip_score(image, prompt, lambda: (network, processor)).item() for image, prompt in whole
    ]
    return {"source": f"torchmetrics {version('torchmetrics')}", "shapes": shapes, "scores": scores}


@torch.no_grad()
def pickscore(folder, side, pairs):
    """exp(logit_scale) times the cosine, as on the model card."""
    from transformers import AutoConfig, AutoModel, AutoProcessor

    tiny.write_clip(folder, side=side)
    network = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    shapes = tiny.fill(network)
    processor = AutoProcessor.from_pretrained(folder)
    scores = []
    for picture, prompt in pairs:
        pixels = processor(images=picture, return_tensors="pt")
        tokens = processor(
            text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        image, text = network.get_image_features(**pixels), network.get_text_features(**tokens)
        image, text = (
            image / image.norm(dim=-1, keepdim=True),
            text / text.norm(dim=-1, keepdim=True),
        )
        scores.append((network.logit_scale.exp() * (text @ image.T)).item())
    source = f"the model card's formula on transformers {version('transformers')}"
    return {"source": source, "shapes": shapes, "scores": scores}


@torch.no_grad()
def open_clip(folder, side, pairs):
    """open_clip's own transform, tokenizer and towers; max(100 cos, 0)."""
    import open_clip

    folder.mkdir()
    (folder / "tiny-golden.json").write_text(json.dumps(tiny.open_clip_config(side)))
    open_clip.add_model_config(folder)
    network, _, transform = open_clip.create_model_and_transforms("tiny-golden", pretrained=None)
    shapes = tiny.fill(network)
    tokenizer = open_clip.get_tokenizer("tiny-golden")
    scores = []
    for picture, prompt in pairs:
        image = network.encode_image(transform(picture)[None], normalize=True)
        text = network.encode_text(tokenizer([prompt]), normalize=True)
        scores.append(max(100 * (image @ text.T).item(), 0.0))
    return {
        "source": f"open_clip_torch {version('open_clip_torch')}",
        "shapes": shapes,
        "scores": scores,
    }


def hpsv2(folder, side, pairs):
    """hpsv2.img_score.score with a tiny model in place of ViT-H-14."""
    import open_clip

    for name in ("turtle", "clint", "clint.textui"):
        stub(name, forward=None, progress=None)
    spec = importlib.util.find_spec("hpsv2")
    assert spec is not None
    (root,) = spec.submodule_search_locations or ()
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(
        Path(open_clip.__file__).with_name(vocabulary),
        Path(root) / "src" / "open_clip" / vocabulary,
    )
    package_without_init("hpsv2")
    img_score = importlib.import_module("hpsv2.img_score")
    factory = importlib.import_module("hpsv2.src.open_clip.factory")
    factory._MODEL_CONFIGS["ViT-H-14"] = tiny.open_clip_config(side)
    network, _, transform = factory.create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device="cpu",
        output_dict=True,
        aug_cfg={},
        light_augmentation=True,
    )
    shapes = tiny.fill(network)
    img_score.model_dict.update(model=network, preprocess_val=transform)
    folder.mkdir()
    torch.save({"state_dict": network.state_dict()}, folder / "HPS.pt")
    scores = [
        float(img_score.score(picture, prompt, str(folder / "HPS.pt"))[0])
        for picture, prompt in pairs
    ]
    source = f"hpsv2 {version('hpsv2')} with torchvision {version('torchvision')}"
    return {"source": source, "shapes": shapes, "scores": scores}


def imagereward(folder, side, pairs):
    """ImageReward.score with small towers."""
    stub("fairscale")
    stub("fairscale.nn")
    stub("fairscale.nn.checkpoint")
    stub("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=None)
    for name in ("ImageReward", "ImageReward.models", "ImageReward.models.BLIP"):
        package_without_init(name)
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    module = importlib.import_module("ImageReward.ImageReward")
    from transformers import BertTokenizer

    tiny.write_bert_tokenizer(folder)
    (folder / "med_config.json").write_text(json.dumps(tiny.MED_CONFIG))
    load, stack, width = BertTokenizer.from_pretrained, module.MLP, tiny.BLIP_WIDTH
    BertTokenizer.from_pretrained = lambda name: load(folder)
    tower = vit.VisionTransformer(
        side, tiny.patch(side), embed_dim=width, depth=2, num_heads=width // 64
    )
    pretrain.create_vit = lambda *_: (tower, width)
    module.MLP = lambda _: stack(width)
    network = module.ImageReward(med_config=folder / "med_config.json")
    network.preprocess = module._transform(side)
    shapes = tiny.fill(network)
    scores = [network.score(prompt, picture) for picture, prompt in pairs]
    return {"source": f"image-reward {version('image-reward')}", "shapes": shapes, "scores": scores}


@torch.no_grad()
def aesthetics(folder, side, pairs):
    """simple-aesthetics-predictor's AestheticsPredictorV2Linear."""
    from aesthetics_predictor import AestheticsPredictorV2Linear
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    tiny.write_clip(folder, side=side)
    network = AestheticsPredictorV2Linear(
        CLIPVisionConfig(**tiny.clip_config(side)["vision_config"])
    )
    shapes = tiny.fill(network)
    processor = CLIPImageProcessor.from_pretrained(folder)
    scores = [
        network(**processor(images=picture, return_tensors="pt")).logits.item()
        for picture, _ in pairs
    ]
    source = f"simple-aesthetics-predictor {version('simple-aesthetics-predictor')}"
    return {"source": source, "shapes": shapes, "scores": scores}


def main():
    """Write golden.json."""
    small = [Image.fromarray(array) for array in tiny.images()]
    large = [Image.fromarray(array) for array in tiny.images(tiny.LARGE_SIZES)]
    translucent = [Image.fromarray(array) for array in tiny.translucent()]
    asked = {
        "": (tiny.SIDE, [(picture, prompt) for picture in small for prompt in tiny.PROMPTS]),
        "-large": (tiny.LARGE_SIDE, [(picture, tiny.PROMPTS[-1]) for picture in large]),
        "-translucent": (tiny.SIDE, list(zip(translucent, tiny.PROMPTS, strict=True))),
    }
    out = {}
    for make in (clip, pickscore, open_clip, hpsv2, imagereward, aesthetics):
        for suffix, (side, pairs) in asked.items():
            if suffix == "-translucent" and make in (clip, hpsv2):
                continue
            # Each in a process of its own, since they replace parts of the packages.
            with (
                tempfile.TemporaryDirectory() as folder,
                ProcessPoolExecutor(1, get_context("spawn")) as process,
            ):
                work = process.submit(make, Path(folder) / make.__name__, side, pairs)
                out[make.__name__ + suffix] = work.result()
            if suffix == "-translucent":  # The network is that of the small pictures.
                del out[make.__name__ + suffix]["shapes"]
            print(make.__name__ + suffix, out[make.__name__ + suffix]["scores"])
    tiny.VALUES.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
