"""HPSv3 (Ma et al., arXiv 2508.03789): human preference for images of a prompt, by Qwen2-VL-7B with
a RankNet head.

Source: the package hpsv3 1.0.0, HPSv3RewardInferencer. Its `reward` takes images first and prompts
second, about which callers have erred (Tencent-Hunyuan/UniRL, pull request 143). It returns the
mean mu and the spread sigma of a normal distribution. The score is mu, as in its own examples.
"""

from __future__ import annotations

from ttsnap.reward_models.vlm.headed import HeadedVLM


class HPSv3(HeadedVLM):
    """mu of HPSv3. Images are resized to 200,704 pixels at most, of which 256 tokens are made."""

    name = "hpsv3"
    weights = "MizzenAI/HPSv3"
    files = ("HPSv3.safetensors", "model.safetensors")
    backbone = "Qwen/Qwen2-VL-7B-Instruct"
    questions = ("hpsv3",)
