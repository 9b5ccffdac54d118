"""From whatever a user gives (a name, a function, a file) to the complete interface of a reward, RewardModel.

The reward models are in `ttsnap.reward_models`.

It imports the core, and reaches reward models by name only.
"""

from ttsnap.rewards.registry import REWARDS, RewardError, make_reward, make_rewards
from ttsnap.rewards.reward_model import FunctionReward, RewardModel

__all__ = ["REWARDS", "FunctionReward", "RewardError", "RewardModel", "make_reward", "make_rewards"]
