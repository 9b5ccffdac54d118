"""A prompt and a budget at which pruning visibly beats best-of-N on the embedded model, for demonstrations.

Of 400 random draws of seeds from a recording (20 steps, 130 seeds), best-of-N found a strictly right image with this
budget in 62 %, seed pruning in 79 %; that of pruning had the higher reward in 34 % and the lower in 3 %, and the rest
were the same image. It cannot be otherwise: the budget starts 6 seeds to the end or 9 to the check, the same 6 among
them. From SEED the difference shows: the right image is among the three seeds that best-of-N does not reach. The
prompt was chosen among 135 of four objects as one that few seeds get right (16 %).
"""

from __future__ import annotations

PROMPT = "a green circle and three red squares"
BUDGET = "6 images"
"""120 evaluations at the model's 20 steps."""
SEED = 48
