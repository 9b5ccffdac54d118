"""python scripts/train_worlds COMMAND: see commands.py."""

import sys
from importlib import import_module
from pathlib import Path

# so that this folder's modules have their package's name
sys.path[0] = str(Path(__file__).parents[1])
import_module("train_worlds.commands").main()
