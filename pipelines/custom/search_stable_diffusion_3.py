"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.stable_diffusion_3 import (
    SearchStableDiffusion3Pipeline as SearchStableDiffusion3Pipeline,
)
