"""What the rows of a batch are made of: latents, noise levels, encoded prompts, seeds.

`rows` has what all layouts share; `packed` has latents that are tokens, `binned` picture sizes that fall into bins.
`schedule` lays a diffusers scheduler open, so that rows at different steps share a batch; `scheduler_kernel` steps as
the scheduler does; `convert` puts another path under a pretrained model. `encoder_inputs` keeps encoded prompts.
`tiny_video_vae` decodes previews of video latents.
"""
