"""Searches over the models that ComfyUI has loaded, with ComfyUI's own samplers.

All that denoises runs inside one `guider.sample` of ComfyUI, which `latents.py` calls. `guided.py`
is the denoiser, under a stock sampler in `stock.py` (`suspended.py` runs one for each candidate),
under ttsnap's own kernels in `paths.py`; `drafts.py` is a drafter, and `fields.py` joins a video
and its sound. `comfy` is imported when a search runs, never before.
"""
