"""Names for diffusers' objects in signatures. Each is Any: diffusers imports lazily, so that type checkers see stubs in
place of its classes, and its annotations are narrower than what it takes. The names say what is meant."""

from typing import Any, TypeAlias

Pipeline: TypeAlias = Any
"""A stock StableDiffusion3Pipeline."""
Transformer: TypeAlias = Any
"""Its SD3Transformer2DModel."""
Vae: TypeAlias = Any
"""Its AutoencoderKL."""
PreviewVae: TypeAlias = Any
"""An AutoencoderTiny."""
