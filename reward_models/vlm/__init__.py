"""Rewards that are a vision-language model: with a head that reads its hidden states, or asked for scores in words.

prompts/ has what each is asked, character by character as its authors ask it, and model.py says where that is from.
weights.py reads published checkpoints, and sight.py turns images and videos into what the models read. headed.py is a
model with a head: HPSv3, EditReward and VideoAlign. spoken.py is a model that answers in words: UnifiedReward and
EditScore. Nothing here reads a pickle.
"""

from ttsnap.reward_models.vlm.edit_reward import EditReward
from ttsnap.reward_models.vlm.edit_score import EditScore
from ttsnap.reward_models.vlm.headed import HeadedVLM
from ttsnap.reward_models.vlm.hpsv3 import HPSv3
from ttsnap.reward_models.vlm.spoken import SpokenVLM
from ttsnap.reward_models.vlm.unified_reward import UnifiedReward
from ttsnap.reward_models.vlm.video_align import VideoAlign

__all__ = ["EditReward", "EditScore", "HPSv3", "HeadedVLM", "SpokenVLM", "UnifiedReward", "VideoAlign"]
