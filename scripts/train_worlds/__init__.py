"""Trains what is packaged in ttsnap/scenes and ttsnap/signs: a file for each model, its data, its
loss and its figures.

`base.py` trains a text-to-image model of any `World`; `SCENES` and `signs.SIGNS` are two.
Shared: `recipes.py`, what every training says of itself; `training.py`, the loop; `stored.py`, data
that are made once; `evaluate.py` and `export.py`, what comes out; `pack.py`, how weights are stored.
docs/embedded_model.md, docs/signs.md and docs/journal say what came out.
"""
