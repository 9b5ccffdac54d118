"""Benchmarks: a prompt set searched by several algorithms at equal budgets, into a folder that
public scorers read.

It imports the core, files, options, algorithms, the loop, results and recordings, and no torch. The
door that runs a benchmark makes the engines.
"""

from pathlib import Path

PRESETS = Path(__file__).parent / "presets"
"""Protocols of papers by name, each a file of settings."""
