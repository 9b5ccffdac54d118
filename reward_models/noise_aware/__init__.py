"""Noise-aware rewards: a frozen reward with a small trained part, and their files.

It imports no torch itself, so that configurations of distillations can be checked without.
"""

KINDS = ("lora", "dora", "per-level", "full")
"""The kinds of student that `student.kind` and adapter.json may name: settings of
student.NoiseAware."""
