"""Noise-aware rewards: a frozen reward with a small trained part, heads that read no pixels, and their files.

It imports no torch itself, so that configurations of distillations can be checked without.
"""

KINDS: dict[str, str] = {
    **dict.fromkeys(("lora", "dora", "per-level", "full"), "ttsnap.reward_models.noise_aware.student:NoiseAware"),
    "head": "ttsnap.reward_models.noise_aware.heads:Head",
}
"""The kinds of student that `student.kind` and adapter.json may name, and the class that makes and loads each."""
