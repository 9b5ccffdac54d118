"""Reward models, one file per family, by the names in `registry.REWARDS`. The registry imports them
when needed."""

from ttsnap.reward_models.registry import REWARDS, make_reward, make_rewards

__all__ = ["REWARDS", "make_reward", "make_rewards"]
