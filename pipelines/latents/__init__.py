"""What the rows of a batch are made of: latents and noise levels.

`schedule` lays a diffusers scheduler open, so that rows at different steps share a batch.
`scheduler_kernel` steps as the scheduler does. `convert` puts another path under a pretrained
model. `tiny_video_vae` decodes previews of videos.
"""
