"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.flux import SearchFluxPipeline as SearchFluxPipeline
