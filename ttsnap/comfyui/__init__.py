"""The door for ComfyUI: nodes that turn their inputs into a request, and a search inside ComfyUI into their outputs.

`nodes.py` is imported by ComfyUI alone, by way of the folder `comfyui/` beside the package. What needs nothing of
ComfyUI stands in `inputs.py` (requests, rewards, reports) and `board.py` (the picture of a search under way).
"""
