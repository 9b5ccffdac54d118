"""EditReward (arXiv 2509.26346): how well an image was edited, by MiMo-VL-7B or Qwen2.5-VL-7B with
two heads.

Source: github.com/TIGER-AI-Lab/EditReward, EditRewardInferencer with the configurations that it
ships: a question about following the instruction and one about the quality of the image, each with
a RankNet of its own, and the mean of both (`pooling_strategy: mean`). A head says the mean mu and
the spread sigma of a normal distribution; the score is mu.
"""

from __future__ import annotations

from ttsnap.reward_models.vlm.headed import HeadedVLM


class EditReward(HeadedVLM):
    """The mean mu of both heads. The prompt is the instruction, `source` the images that were
    edited."""

    name = "editreward"
    needs = frozenset({"source"})
    weights = "TIGER-Lab/EditReward-MiMo-VL-7B-SFT-2508"
    backbone = "XiaomiMiMo/MiMo-VL-7B-SFT-2508"
    questions = ("edit_reward_following", "edit_reward_quality")
