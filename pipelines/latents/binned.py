"""Transformers with masked text that know a few picture sizes, "bins", by aspect ratio (PixArt-Sigma, Sana)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from ttsnap.pipelines.guidance.paired import PairedDenoiser
from ttsnap.pipelines.latents.rows import unscaled


class BinnedDenoiser(PairedDenoiser):
    """Samples at the nearest size that the network knows; pictures are resized afterwards."""

    bins: ClassVar[Mapping[int, Any]]
    """Sizes (height, width) by aspect ratio that a transformer of a sample size was trained on."""

    def choose_size(self, height: int, width: int, *, binned: bool) -> None:
        """Sample at the bin of this shape, or at the size itself. ValueError for a network that has no bins."""
        self._asked = (height, width)
        if binned:
            native = self.net.config.sample_size
            if native not in self.bins:
                raise ValueError(
                    f"no resolution bins for sample_size {native}; they need a transformer of sample size "
                    f"{', '.join(map(str, self.bins))}, this one has {native}; set use_resolution_binning=False"
                )
            height, width = self.pipe.image_processor.classify_height_width_bin(height, width, ratios=self.bins[native])
        self.height, self.width = height, width

    def mean(self, out: Tensor, x: Tensor) -> Tensor:
        """The network's output without the variance that some checkpoints predict too, which no sampler reads."""
        learned = self.net.config.out_channels // 2 == x.shape[1]
        return out.chunk(2, dim=1)[0] if learned else out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        decoded = self.decoded(vae, unscaled(vae, x0.to(vae.dtype)))
        if (self.height, self.width) != self._asked:
            height, width = self._asked
            decoded = self.pipe.image_processor.resize_and_crop_tensor(decoded, width, height)
        return self.postprocess(decoded)
