"""The live engine: it runs moves on a model in full batches, decodes estimates and asks rewards for their scores.

It imports torch, the core, sampling and profiling.
"""
