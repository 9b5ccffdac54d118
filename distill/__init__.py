"""Noise-aware rewards by curriculum self-distillation, and drafts: recordings -> train -> evaluate
-> export.

`run.distill(config, out)` does all of it for rewards, `draft.run.distill_draft` for drafts;
`evaluate.evaluate` measures any reward on recordings.
"""
