"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.stable_diffusion import SearchStableDiffusionPipeline as SearchStableDiffusionPipeline
