"""PickScore: a CLIP ViT-H finetuned on users' choices (Kirstain et al., arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ttsnap.reward_models.clip import HFTowers


class PickScore(HFTowers):
    """exp(logit_scale) x cosine, about 18 to 24. Differences of two scores are log-odds that users
    prefer one."""

    name = "pickscore"
    weights = "yuvalkirstain/PickScore_v1"
    processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scale: Tensor = self.network.logit_scale.float().exp()
        return scale * self.cosine(images, prompts)
