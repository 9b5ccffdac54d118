"""One file for each diffusers family: how it encodes prompts, draws latents, calls its network and
decodes."""
