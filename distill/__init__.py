"""Noise-aware rewards by curriculum self-distillation: recordings -> curriculum -> train ->
evaluate -> export.

`run.distill(config, out)` does all of it; `evaluate.evaluate` measures any reward on recordings;
`draft` trains drafts.
"""
