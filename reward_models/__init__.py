"""Reward models, one file per family. Names are registered in ttsnap.rewards.registry.REWARDS."""
