"""Sampling along paths between noise and data: interpolants, kernels, steps guided by gradients, noise by key.

It imports torch and the core.
"""
