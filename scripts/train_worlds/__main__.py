"""python scripts/train_worlds COMMAND: see commands.py."""

import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # so that this folder's modules have their package's name
import_module("train_worlds.commands").main()
