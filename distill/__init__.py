"""Noise-aware rewards by curriculum self-distillation: recordings -> curriculum -> train -> evaluate -> export."""
