"""The complete interface of a reward, RewardModel, and how its scores are taken and its failures
told.

The rewards themselves, and their names, are in `ttsnap.reward_models`. This room imports the core
only.
"""

from ttsnap.rewards.reward_model import FunctionReward, RewardError, RewardModel

__all__ = ["FunctionReward", "RewardError", "RewardModel"]
