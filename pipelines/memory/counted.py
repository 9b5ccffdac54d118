"""What the rows of a pipeline's denoiser cost in FLOPs: counted once for a setting, and kept with the pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Self, cast

from ttsnap.pipelines.drafting.drafting import DraftingDenoiser
from ttsnap.pipelines.memory import flops
from ttsnap.pipelines.memory.flops import Memo


class CountedDenoiser(DraftingDenoiser):
    """Counts what `PipelineDenoiser` computes, by its size, its passes, its networks and the length of its texts."""

    height: int
    width: int
    text_length: Hashable = None
    """Tokens of the encoded prompts, or what decides on them, where calls may differ in it: the FLOPs do, too."""

    @property
    def net(self) -> Any:
        """The network that denoises."""
        raise NotImplementedError

    def flops(self) -> tuple[float, float]:
        return flops.counted(self, "decode")

    def preview_flops(self) -> float:
        return flops.counted(self, "preview")[1]

    def draft_flops(self) -> float:
        return flops.counted_draft(self) if self.drafts else 0.0

    @property
    def memo(self) -> Memo:
        """What was measured of this pipeline before, by what it was measured with; lives as long as the pipeline."""
        return cast(Memo, self.pipe._search_memo)

    def setting(self, decoder: str = "decode") -> tuple[Hashable, ...]:
        """What the cost and the memory of a row depend on."""
        vae = self.pipe.vae if decoder == "decode" else self.pipe.preview_vae
        parts = (self.net, vae)
        call = (self.height, self.width, self.passes_per_nfe, self.text_length)
        return (*(weakref.ref(p) for p in parts), *(flops.filling(p) for p in parts), *call)

    def meta_twin(self) -> Self:
        """This denoiser with all that `output` and a decode compute with on the meta device."""
        return flops.meta_twin(self)
