"""A vision-language model behind an OpenAI-compatible API as a reward: images and prompts leave the machine.

options.py has the settings, questions.py the questions and how answers are read, client.py the client and its cache of
scores, rewards.py the rewards.
"""

from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.judge.rewards import Judge, PairJudge

__all__ = ["Judge", "JudgeOptions", "PairJudge"]
