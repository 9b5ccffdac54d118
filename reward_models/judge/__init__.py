"""A vision-language model behind an OpenAI-compatible API as a reward: images and prompts leave the machine.

options.py says which model is asked, and how; questions.py what it is asked, and how its answers are read; client.py
asks; cache.py remembers; rewards.py makes rewards of all that.
"""

from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.judge.rewards import Judge, PairJudge

__all__ = ["Judge", "JudgeOptions", "PairJudge"]
