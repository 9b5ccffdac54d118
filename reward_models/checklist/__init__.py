"""A checklist: several questions about an image, each with an answer of its own in [0, 1]."""

from ttsnap.reward_models.checklist.rewards import Checklist, ItemAnswers

__all__ = ["Checklist", "ItemAnswers"]
