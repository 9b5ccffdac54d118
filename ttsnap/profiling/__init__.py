"""What things take on this machine: memory, FLOPs, seconds by phase, energy.

It imports torch and nothing else of ttsnap.
"""
