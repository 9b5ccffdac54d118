"""The complete interface of a reward, RewardModel, and how users name rewards: a name, a function, a file, an address.

The rewards themselves are in `ttsnap.reward_models`. This room imports the core, and loads them by name only.
"""

from ttsnap.rewards.registry import REWARDS, RewardError, make_reward, make_rewards
from ttsnap.rewards.reward_model import FunctionReward, RewardModel

__all__ = ["REWARDS", "FunctionReward", "RewardError", "RewardModel", "make_reward", "make_rewards"]
