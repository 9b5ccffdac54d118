"""Drafts: a LoRA that jumps from noise to where the deterministic sampler would end, so that seeds can be ranked early.

In the order of the work: trajectories of the model itself, training on them, evaluation on held-out prompts, and a
folder that plain diffusers loads. `run` joins them; `config` has no torch.
"""
