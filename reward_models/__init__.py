"""Reward models, one file per family, by the names in `registry.REWARDS`. The registry imports them when needed."""
