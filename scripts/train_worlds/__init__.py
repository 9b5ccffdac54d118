"""Trains what is packaged in ttsnap/scenes: a file for each model, with its data, its loss and its figures.

Shared: `recipes.py`, what every training says of itself; `training.py`, the loop; `stored.py`, data that are made once;
`evaluate.py` and `export.py`, what comes out. docs/embedded_model.md says what came out.
"""
