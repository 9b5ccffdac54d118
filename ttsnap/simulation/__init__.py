"""Studies over recordings: curves over budgets, thousands of searches in lockstep, fitted schedules
and prices.

It imports recordings, algorithms, the loop and the core, and no torch.
"""
