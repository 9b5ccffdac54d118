"""Searches over the models that ComfyUI has loaded, with ComfyUI's own samplers.

Everything that denoises runs inside one `guider.sample` of ComfyUI: `latents.py` makes the call, `guided.py` is the
denoiser, `stock.py` turns a stock sampler into a kernel, `paths.py` serves ttsnap's own kernels, `drafts.py` a drafter.
`comfy` is imported when a search runs, never before. What ComfyUI does is called, not copied.
"""
