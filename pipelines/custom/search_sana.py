"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.sana import SearchSanaPipeline as SearchSanaPipeline
