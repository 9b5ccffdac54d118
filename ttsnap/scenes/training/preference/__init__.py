"""The preference LoRA: a reward's best and worst pictures of a caption, by Diffusion-DPO."""
