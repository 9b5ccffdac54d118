"""Lets the tests import scripts/train_worlds, what trains and measures the embedded models."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
