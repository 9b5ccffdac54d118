"""Sampling along paths between noise and data: interpolants, kernels, steps guided by gradients,
noise by key, and the base class of the models that denoise.

It imports torch, the core, files and the declared options.
"""
