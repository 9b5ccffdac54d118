"""Drafts: a LoRA that jumps from noise to the end of the deterministic sampler, so that seeds can
be ranked early.

`run` joins the parts in this order: trajectories of the model itself, training on them, export of a
folder that plain diffusers loads, evaluation on held-out prompts. `config` imports no torch.
"""
