"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.flux2_klein import SearchFlux2KleinPipeline as SearchFlux2KleinPipeline
