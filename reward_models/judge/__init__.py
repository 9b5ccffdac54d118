"""A vision-language model behind an OpenAI-compatible API as a reward: images and prompts leave the
machine.

options.py has the settings, and questions.py the questions and how answers are read. client.py has
the client and its cache of scores, and rewards.py the rewards.
"""

from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.judge.rewards import Judge, PairJudge

__all__ = ["Judge", "JudgeOptions", "PairJudge"]
