"""The door for ComfyUI: `nodes.py`, which ComfyUI alone imports, and what the nodes' inputs mean,
without ComfyUI."""
