"""Noise-aware rewards: a frozen reward with a small trained part, heads that read no pixels, and their files."""
