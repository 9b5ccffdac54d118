"""The second backend, over modular diffusers: image to image, inpainting, edits and video.

A modular pipeline is a sequence of blocks with one loop among them. `blocks` takes a workflow apart at that loop,
`conditions` keeps what the blocks before it made for each prompt and seed and puts rows of a batch together, `denoiser`
makes a Denoiser of it all, `workflows` declares what each workflow that works needs to be told, and `pipeline` is the
mixin for modular pipelines. Only diffusers versions that the tests have seen are accepted (`workflows`). Text to image
by classic pipelines, which nearly everybody loads, stays with ../families."""
