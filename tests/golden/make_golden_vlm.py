"""Make golden_vlm.json: scores of tiny vision-language models by the original packages. Run once
per environment:

    python3.11 -m venv old; python3.11 -m venv new old/bin/pip install torch torchvision
    transformers==4.45.2 trl==0.8.6 peft==0.10.0 "accelerate<1.1" datasets \
        fire matplotlib omegaconf opencv-python-headless prettytable qwen-vl-utils requests
        tensorboard
    old/bin/pip install --no-deps hpsv3==1.0.0 new/bin/pip install torch torchvision
    transformers==4.57.0 trl==0.8.6 peft==0.17.0 accelerate==1.10.1 datasets \
        fire json_repair matplotlib omegaconf qwen-vl-utils regex requests tensorboard
    new/bin/pip install --no-deps editscore==0.2 git clone
    https://github.com/KlingAIResearch/VideoAlign; git clone
    https://github.com/TIGER-AI-Lab/EditReward old/bin/python tests/golden/make_golden_vlm.py hpsv3
    PYTHONPATH=VideoAlign old/bin/python tests/golden/make_golden_vlm.py video_align
    PYTHONPATH=EditReward new/bin/python tests/golden/make_golden_vlm.py edit_reward edit_score

hpsv3 and EditReward name these versions of transformers; VideoAlign is as old as the first. What
had to be bent: attention is PyTorch's, since FlashAttention needs a GPU, and VideoAlign's reader of
video files is replaced by one that hands it the frames. The scoring code itself runs unchanged.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny
import tiny_vlm


def made(package, network, scores):
    """One entry of golden_vlm.json; the weights are those that `tiny.fill` gave the network
    before."""
    shapes = {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    return {
        "source": f"{package} on transformers {version('transformers')}",
        "shapes": shapes,
        "scores": scores,
    }


def write_random(folder, kind):
    """A backbone with weights, which the packages load first and then replace."""
    from transformers import AutoConfig, AutoModelForVision2Seq

    tiny_vlm.write_backbone(folder, kind)
    AutoModelForVision2Seq.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    # The configuration as it was published, not as this version writes it.
    tiny_vlm.write_backbone(folder, kind)


def prepared(folder, kind, module, published, file):
    """For HPSv3 and EditReward: the path of settings for a CPU, and a list that gets the network,
    once it is made.

    module: has `create_model_and_processor`, which fills the network from now on. file: of its
        weights.
    """
    import yaml
    from safetensors.torch import save_file

    write_random(folder / "backbone", kind)
    changed = {
        "model_name_or_path": str(folder / "backbone"),
        "torch_dtype": "float32",
        "bf16": False,
    }
    changed |= {"deepspeed": None, "output_dir": str(folder), "disable_flash_attn2": True}
    changed |= {"gradient_checkpointing_kwargs": None, "use_cpu": True}
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(published.read_text()), **changed})
    )
    build, networks = module.create_model_and_processor, []

    def filled(**options):
        network, *rest = build(**options)
        tiny.fill(network)
        save_file(network.state_dict(), folder / file)
        networks.append(network)
        return network, *rest

    module.create_model_and_processor = filled
    return str(folder / "tiny.yaml"), networks


@torch.no_grad()
def hpsv3(folder):
    """HPSv3RewardInferencer, whose `reward` takes images first; mu and sigma."""
    from hpsv3 import inference

    published = Path(inference.__file__).parent / "config" / "HPSv3_7B.yaml"
    settings, networks = prepared(folder, "qwen2_vl", inference, published, "HPSv3.safetensors")
    reward = inference.HPSv3RewardInferencer(
        settings, str(folder / "HPSv3.safetensors"), device="cpu"
    )
    scores = []
    for array in tiny.images(tiny_vlm.SIZES):
        pictures = [Image.fromarray(array)] * len(tiny_vlm.PROMPTS)
        scores += reward.reward(pictures, list(tiny_vlm.PROMPTS)).tolist()
    return made(f"hpsv3 {version('hpsv3')}", networks[0], scores)


@torch.no_grad()
def video_align(folder):
    """VideoVLMRewardInference with adapters that are not merged; VQ, MQ, TA, normalised, and their
    sum."""
    import inference
    import vision_process
    from data import DataConfig
    from utils import ModelConfig, PEFTLoraConfig

    write_random(folder / "backbone", "qwen2_vl")
    lora = PEFTLoraConfig(
        lora_enable=True, lora_r=4, lora_alpha=8, lora_namespan_exclude=list(tiny_vlm.NO_LORA)
    )
    model = ModelConfig(
        model_name_or_path=str(folder / "backbone"),
        output_dim=1,
        use_special_tokens=True,
        reward_token="special",
    )
    data = DataConfig(
        max_frame_pixels=448 * 448,
        eval_dim=["VQ", "MQ", "TA"],
        prompt_template_type="detailed_special",
    )
    written = {
        "data_config": asdict(data),
        "model_config": asdict(model),
        "peft_lora_config": asdict(lora),
    }
    written["inference_config"] = tiny_vlm.NORMAL
    (folder / "model_config.json").write_text(json.dumps(written))
    build, networks = inference.create_model_and_processor, []

    def filled(training_args, **options):
        training_args.disable_flash_attn2 = True
        network, *rest = build(training_args=training_args, **options)
        tiny.fill(network)
        (folder / "checkpoint-1").mkdir()
        torch.save(network.state_dict(), folder / "checkpoint-1" / "model.pth")
        networks.append(network)
        return network, *rest

    inference.create_model_and_processor = filled
    frames = {
        f"{i}.mp4": torch.from_numpy(v).permute(0, 3, 1, 2) for i, v in enumerate(tiny_vlm.videos())
    }
    vision_process.VIDEO_READER_BACKENDS = dict.fromkeys(
        ("torchvision", "decord"), lambda asked: frames[asked["video"].removeprefix("file://")]
    )
    reward = inference.VideoVLMRewardInference(str(folder), device="cpu", dtype=torch.float32)
    scores = []
    for path in frames:
        found = reward.reward([path] * len(tiny_vlm.PROMPTS), list(tiny_vlm.PROMPTS))
        scores += [[row[axis] for axis in ("VQ", "MQ", "TA", "Overall")] for row in found]
    return made("KlingAIResearch/VideoAlign, main", networks[0], scores)


@torch.no_grad()
def edit_reward(folder):
    """EditRewardInferencer with its two heads; the means of mu and of sigma."""
    import EditReward
    from EditReward import inference_edit

    published = Path(EditReward.__file__).parent / "config" / "EditReward-Qwen2.5-7B-VL.yaml"
    settings, networks = prepared(
        folder, "qwen2_5_vl", inference_edit, published, "model.safetensors"
    )
    reward = inference_edit.EditRewardInferencer(settings, str(folder), device="cpu")
    scores, n = [], len(tiny_vlm.PROMPTS)
    source = Image.fromarray(tiny.images([tiny_vlm.SOURCE])[0])
    for array in tiny.images(tiny_vlm.SIZES):
        scores += reward.reward(
            list(tiny_vlm.PROMPTS), [source] * n, [Image.fromarray(array)] * n
        ).tolist()
    return made("TIGER-AI-Lab/EditReward, main", networks[0], scores)


@torch.no_grad()
def edit_score(folder):
    """EditScore's answers to both questions, as sharp as greedy ones, and what it reads in answers
    of all kinds."""
    import random

    import transformers
    from editscore import EditScore
    from editscore.mllm_tools import qwen25vl
    from editscore.utils import mllm_output_to_dict

    write_random(folder, "qwen2_5_vl")
    whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    tiny.fill(whole)
    qwen25vl.Qwen2_5_VLForConditionalGeneration = Placed(whole)
    to = transformers.BatchFeature.to
    transformers.BatchFeature.to = lambda batch, _: to(batch, "cpu")
    reward = EditScore(backbone="qwen25vl", model_name_or_path=str(folder), temperature=1e-4)
    source, result = (
        Image.fromarray(array) for array in tiny.images([tiny_vlm.SOURCE, tiny_vlm.SIZES[0]])
    )
    asked = (
        (reward.SC_prompt.replace("<instruction>", tiny_vlm.PROMPTS[1]), [source, result]),
        (reward.PQ_prompt, result),
    )
    answers = [
        reward.model.inference(reward.model.prepare_input(images, text)) for text, images in asked
    ]
    scores = []
    for edit, image in tiny_vlm.ANSWERS:
        random.seed(0)
        queue = [edit, image]
        reward.model.inference = lambda *_, queue=queue, **__: queue.pop(0)
        scores.append(reward.evaluate([source, result], tiny_vlm.PROMPTS[1])["overall"])
    assert mllm_output_to_dict(tiny_vlm.ANSWERS[0][0], score_range=25)
    return {**made(f"editscore {version('editscore')}", whole, scores), "answers": answers}


class Placed:
    """In place of a class: its from_pretrained returns this network, wherever it is asked to be."""

    def __init__(self, network):
        self.from_pretrained = lambda *_, **__: network


MAKERS = {make.__name__: make for make in (hpsv3, video_align, edit_reward, edit_score)}


def main():
    """Write the named entries of golden_vlm.json."""
    out = json.loads(tiny_vlm.VALUES.read_text()) if tiny_vlm.VALUES.exists() else {}
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            out[name] = MAKERS[name](Path(folder))
        print(name, out[name]["scores"])
    tiny_vlm.VALUES.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
