"""The second backend, over modular diffusers: image to image, inpainting, edits and video.

A modular pipeline is a sequence of blocks with one loop among them. `blocks` splits a workflow at that loop.
`conditions` keeps what the blocks before it made for each prompt and seed, and collates the rows of a batch. `denoiser`
makes a Denoiser of both, `workflows` declares the workflows, and `pipeline` is the mixin for modular pipelines.
`classic` runs searches of classic pipelines over modular ones. Only tested versions of diffusers are accepted.
"""
