"""Drafts: a LoRA that jumps from noise to the end of the deterministic sampler, so that seeds can
be ranked early. `run` joins the parts: training, export of a folder that plain diffusers loads,
evaluation on held-out prompts.
"""
