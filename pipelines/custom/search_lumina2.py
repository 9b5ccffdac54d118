"""For DiffusionPipeline.from_pretrained(..., custom_pipeline=this file, trust_remote_code=True)."""

from ttsnap.pipelines.families.lumina2 import SearchLumina2Pipeline as SearchLumina2Pipeline
