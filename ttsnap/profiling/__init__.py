"""Measurements on this machine: memory, FLOPs, seconds by phase, energy.

It imports the core and torch.
"""
