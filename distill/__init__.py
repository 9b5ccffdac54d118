"""Noise-aware rewards by curriculum self-distillation: recordings -> curriculum -> train -> evaluate -> export.

`run.distill(config, out)` is the whole pipeline; `evaluate.evaluate` measures any reward on recordings.
"""
