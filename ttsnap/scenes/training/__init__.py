"""How the embedded world's models were made: a folder for each, with its recipe, its data and its training loop.

A recipe is a frozen dataclass; its defaults made what is packaged. One command runs them all and goes on where it was
interrupted: `python -m ttsnap.scenes.training base --out DIR` (also `preview`, `reward` and `preference`; `--help`
tells). The noise-aware reward is trained by `ttsnap distill`, with a recipe of its own. docs/embedded_model.md tells
what came out.
"""
